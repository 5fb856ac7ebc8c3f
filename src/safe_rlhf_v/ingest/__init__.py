"""Import of user files into shards."""
