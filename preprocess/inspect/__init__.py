"""The commands that look at a dataset: verify, report, inspect, curate."""
