"""Tests of mae3d/weights."""
