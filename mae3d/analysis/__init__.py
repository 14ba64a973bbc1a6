"""Trained models are read out: features, attention, reconstructions, scores and probes."""
