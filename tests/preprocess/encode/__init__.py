"""Tests of preprocess/encode."""
