"""Tests of pipelines/reading."""
