"""Weights are opened, saved, converted between published formats and resized to other grids."""
