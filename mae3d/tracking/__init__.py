"""A run's folder and what it records: metrics, progress, trackers, curves and summaries."""
