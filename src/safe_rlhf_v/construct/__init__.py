"""Building a data set of your own: stages from images to shards, judges, and an audit of their labels."""
