"""Tests of preprocess/sources."""
