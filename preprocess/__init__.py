"""Media on disk ─► shards: frame folders with a ledger, or video files, in; the disk contract (`preprocess.index`) out."""
