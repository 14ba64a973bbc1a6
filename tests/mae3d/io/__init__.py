"""Tests of mae3d/io."""
