"""Tests of preprocess/jobs."""
