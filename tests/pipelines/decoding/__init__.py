"""Tests of pipelines/decoding."""
