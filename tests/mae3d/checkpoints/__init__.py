"""Tests of mae3d/checkpoints."""
