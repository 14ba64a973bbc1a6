"""The plan of a build: which sample is read from where and goes to which shard."""
