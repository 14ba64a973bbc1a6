"""Shards ─► clips on the device: which frames, which sample when, crops as data, decoding with DALI.

    from pipelines import Loader
    loader = Loader.open("shards", num_frames=16, size=112, global_batch=8)
    for batch in loader:  # endless; batch.clips is (B, R, T, H, W, C) uint8
        ...

Names are resolved on first use (PEP 562), so that `import pipelines` costs nothing.
"""

from importlib import import_module

_OWNERS = {
    "Batch": "stream",
    "ClipStream": "stream",
    "Corpus": "samples.corpus",
    "DataConfig": "config",
    "DataError": "reading.shard_reader",
    "Loader": "loader",
    "SelectConfig": "config",
    "evaluation_clips": "stream",
    "open_corpus": "samples.corpus",
    "select_rows": "samples.selection",
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
