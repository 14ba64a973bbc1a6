"""Planned samples become JPEG frames in tars: one shard at a time, in a child process."""
