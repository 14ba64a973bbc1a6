"""The kind of a new dataset's frames is settled before anything is built: channels and bits of the first sample.

    settings = settled(settings, scan.requests, roots)     # ValueError if the layout cannot hold them

Layout png stores what the first sample has, unless settings say otherwise; samples of another kind are rejected one by
one. Layouts jpeg and video hold 8-bit grey and RGB, and refuse all else here, with the remedy.
"""

from collections.abc import Sequence
from dataclasses import replace

from mae3d.video.errors import MediaError
from preprocess.plan.samples import HOOK, Request, media_files
from preprocess.plan.settings import Settings, kind_words, refuse_unfit
from preprocess.sources.roots import Root
from preprocess.workers.decoder import decoder

_TRIED = 20  # samples, of which one at least must open


def settled(settings: Settings, requests: Sequence[Request], roots: Sequence[Root]) -> Settings:
    """Return settings that say channels and bits, of layout png.

    Args:
        settings: those that were given.
        requests: all samples.
        roots: where their paths start.

    Raises:
        ValueError: the layout cannot hold the frames, they need a window, or they are a program's, which has no files.
    """
    if settings.layout == "files" or (settings.channels and settings.bits):
        return settings
    if any(request.kind == HOOK for request in requests[:1]):
        if settings.layout == "png":
            raise ValueError(
                "--layout png: a --source has no files whose kind could be seen: give --channels and --bits"
            )
        return settings
    # If nothing opens, the build will say of every sample why.
    name, channels, bits = _first_kind(settings, requests, roots) or ("", 3, 8)
    try:
        if settings.layout == "png":
            return _of_png(settings, channels, bits)
        refuse_unfit(channels, 8 if settings.window else bits, settings.layout)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return settings


def _of_png(settings: Settings, channels: int, bits: int) -> Settings:
    if not bits and not settings.window:
        raise ValueError("its values are neither 8 nor 16 bits: --window LOW HIGH maps them onto all levels")
    if settings.window and bits != 8:
        bits = settings.bits or 16
    if (settings.channels or channels, settings.bits or bits) != (channels, bits):
        given = kind_words(settings.channels or channels, settings.bits or bits)
        remedy = ", and --window LOW HIGH maps a range of their values" if settings.bits == 8 else ""
        raise ValueError(f"{kind_words(channels, bits)}, not {given}: leave --channels and --bits out{remedy}")
    return replace(settings, channels=channels, bits=bits)


def _first_kind(settings: Settings, requests: Sequence[Request], roots: Sequence[Root]) -> tuple[str, int, int] | None:
    """Return name, channels and bits of the first sample that opens; None if none of the first ones does."""
    for request in requests[:_TRIED]:
        sample = request.planned()
        try:
            with roots[request.root].local(media_files(sample, settings)[:1]) as (file,):
                channels, bits = decoder().pixel_kind(file, request.kind, settings=settings)
        except MediaError:
            continue
        return request.name, channels, bits
    return None
