"""Tests of preprocess/inspect."""
