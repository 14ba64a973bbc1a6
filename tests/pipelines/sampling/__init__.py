"""Tests of pipelines/sampling."""
