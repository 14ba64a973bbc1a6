"""Tests of pipelines/samples."""
