"""Tests of launch/training."""
