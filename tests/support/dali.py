"""DALI's decoder on the CPU, in place of a GPU's: what a stream does around DALI runs without a GPU."""

from typing import Any

import numpy as np
import pytest
import torch

from pipelines.decoding.clips import cut_views
from pipelines.decoding.crops import Cropper
from pipelines.decoding.dali import DaliDecoder, JpegGraph
from pipelines.reading.source import EncodedBatch
from pipelines.stream import ClipStream


class DaliOnCpu:
    """Complete frames by DALI, views by the CPU's crops: the very pixels of `ThreadDecoding`."""

    def __init__(self, decoder: DaliDecoder, cropper: Cropper):
        self._decoder, self._cropper = decoder, cropper
        self.run, self.restart, self.close = decoder.run, decoder.restart, decoder.close

    def clips(self, encoded: EncodedBatch, outputs: tuple[Any, ...]) -> torch.Tensor:
        return cut_views(self._cropper, encoded, decoded_clips(outputs[0], len(encoded.clips)))


def decoded_clips(frames: Any, clips: int) -> list[torch.Tensor]:
    """Copy DALI's frames on the CPU into one (T, H, W, C) tensor per clip; sizes differ between clips alone."""
    pictures = [np.array(frames.at(number)) for number in range(len(frames))]
    each = len(pictures) // clips
    return [torch.from_numpy(np.stack(pictures[at : at + each])) for at in range(0, len(pictures), each)]


def decode_by_dali(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every new stream of layout jpeg decode by DALI on the CPU."""

    def decoding(
        self: ClipStream,
        config: Any,
        *,
        max_clips: int,
        num_frames: int,
        num_views: int,
        size: Any,
        channels: int,
        threads: int,
    ) -> DaliOnCpu:
        graph = JpegGraph(
            max_frames=max_clips * num_frames,
            decode="cpu",
            resize=None,
            num_views=num_views,
            size=size,
            channels=channels,
        )
        return DaliOnCpu(DaliDecoder(self._next_encoded, graph, threads=threads), self._cropper)

    monkeypatch.setattr(ClipStream, "_decoding_of", decoding)
