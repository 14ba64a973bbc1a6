"""A model over held-out samples into resumable tables."""
