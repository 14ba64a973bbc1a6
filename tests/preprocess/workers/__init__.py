"""Tests of preprocess/workers."""
