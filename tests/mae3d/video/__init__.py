"""Tests of mae3d/video."""
