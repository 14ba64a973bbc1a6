"""Tests of mae3d/analysis."""
