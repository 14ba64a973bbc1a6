"""Shards are built by local workers or a Dask cluster; media are decoded in child processes."""
