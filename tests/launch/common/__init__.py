"""Tests of launch/common."""
