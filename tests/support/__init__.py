"""Helpers that the tests share: media, datasets, damage, launched trainings, servers."""
