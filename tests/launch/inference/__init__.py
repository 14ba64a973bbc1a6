"""Tests of launch/inference."""
