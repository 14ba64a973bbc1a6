"""Tests of mae3d."""
