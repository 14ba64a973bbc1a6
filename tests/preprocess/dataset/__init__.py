"""Tests of preprocess/dataset."""
