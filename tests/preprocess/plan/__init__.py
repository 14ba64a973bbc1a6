"""Tests of preprocess/plan."""
