"""Shards behind URLs are fetched into a bounded cache on this node."""
