"""From other people's files to shards."""
