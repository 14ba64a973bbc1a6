"""Tests of preprocess."""
