"""Tests of pipelines/storage."""
