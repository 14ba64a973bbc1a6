"""Media on disk become shards: frame folders or video files in, the disk contract (`preprocess.dataset`) out.

    from preprocess import ShardWriter
    with ShardWriter("shards") as writer:  # samples of one's own
        writer.add(frames, name="clip", label="dog", fps=30)  # uint8 (T, H, W, 3), or a list of pictures

Names are resolved on first use (PEP 562), so that `import preprocess` costs nothing.
"""

from importlib import import_module

_OWNERS = {
    "Dataset": "dataset.dataset",
    "DatasetError": "dataset.schema",
    "ShardWriter": "jobs.shard_writer",
    "Spans": "dataset.dataset",
    "open_dataset": "dataset.index",
}

__all__ = list(_OWNERS)


def __getattr__(name: str) -> object:
    """Import the module that owns a public name when the name is first used."""
    if name not in _OWNERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_OWNERS[name]}"), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
