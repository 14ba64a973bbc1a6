"""Checkpoints on disk: their format, what is kept, and their mirror on object storage."""
