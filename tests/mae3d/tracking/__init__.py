"""Tests of mae3d/tracking."""
