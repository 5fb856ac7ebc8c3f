"""The public commands on the embedded world, one after another: quickstart and compare."""
