"""Tests of mae3d/model."""
