"""Tests of preprocess/demo."""
