"""Media on disk become shards: frame folders or video files in, the disk contract (`preprocess.dataset`) out."""
