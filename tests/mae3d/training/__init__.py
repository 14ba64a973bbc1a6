"""Tests of mae3d/training."""
