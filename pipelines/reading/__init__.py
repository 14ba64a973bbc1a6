"""Requests become encoded bytes, read from shards and checked."""
