"""Shards ─► clips on the device: which frames, which sample when, crops as data, decoding with DALI."""
