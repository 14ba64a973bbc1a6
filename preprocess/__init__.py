"""Media on disk ─► shards: frame folders or video files in, the disk contract (`preprocess.dataset.index`) out."""
