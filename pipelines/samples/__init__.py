"""Datasets become one corpus of samples with labels, of which a selection takes part."""
