"""DALI decodes, crops and resizes small batches of two sizes as training would, and its pixels are checked.

    python -c 'from pipelines.decoding.self_test import decode_self_test as test; print(test("cpu"))'

A decoder can crash the process, so the launcher runs this in a child before any process relies on the GPU's.
"""

import base64
import io
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from pipelines.decoding.clip_decoder import ClipDecoder
from pipelines.decoding.crops import cut_on_device
from pipelines.decoding.dali import VERSION, DaliDecoder, JpegGraph, VideoGraph
from pipelines.decoding.packing import clip_in_ivf
from pipelines.reading.source import EncodedBatch, FetchedClip
from pipelines.sampling.augment import Crop, View
from pipelines.sampling.requests import BatchRequest, ClipRequest
from preprocess.dataset.layout import Layout, video_layout

MAX_LEVELS = 1.5  # mean difference of a clip's pixels: FFmpeg's fast converter, the reference, is a level too dark
MAX_OF_FRAME = 4.0  # mean difference of a frame's: another frame of the clip differs by more than three times of that
_SIZE = 32
_BATCHES = 4


def decode_self_test(device: Literal["cpu", "mixed"], *, layout: str = "jpeg", device_id: int = 0) -> str:
    """Decode, crop and resize, and compare the pixels with known ones.

    Args:
        device: `mixed` decodes and resizes on the GPU.
        layout: what is decoded, `jpeg` or `video`; the latter by a GPU only.
        device_id: the GPU.

    Returns:
        DALI's version.

    Raises:
        RuntimeError: it cannot, or the pixels are wrong.
    """
    test = _test_video if layout == "video" else _test_jpeg
    test(device, device_id if device == "mixed" else None)
    return VERSION


def _test_jpeg(device: Literal["cpu", "mixed"], device_id: int | None) -> None:
    colours = np.array([[200, 60, 40], [30, 90, 220]])
    batch = _plain_batch(colours)
    graph = JpegGraph(
        max_frames=len(batch.frames),
        decode=device,
        resize="gpu" if device == "mixed" else "cpu",
        num_views=1,
        size=_SIZE,
    )
    decoder = DaliDecoder(lambda: batch, graph, threads=2, device_id=device_id)
    for _ in range(_BATCHES):
        _, (images,) = decoder.run()
        pixels = np.asarray(images.as_cpu().as_tensor()).reshape(len(colours), -1, 3).astype(int)
        if np.abs(pixels - colours[:, None]).max() > 8:
            raise RuntimeError(f"DALI ({device}) decoded frames of the colours {colours.tolist()} to other pixels")


def _test_video(device: Literal["cpu", "mixed"], device_id: int | None) -> None:
    samples: Any = _Samples()
    batch = _video_batch(samples)
    decoder, views = ClipDecoder(samples), [clip.views for clip in batch.clips]
    right = [decoder.decode(FetchedClip(*pair)) for pair in zip(batch.clips, batch.parts, strict=True)]
    reference = cut_on_device(right, views, size=_SIZE, device=torch.device("cpu"))
    expected = reference.view(len(batch.clips), -1, *reference.shape[1:]).numpy().astype(int)
    graph = VideoGraph(
        max_clips=len(batch.clips),
        decode=device,
        num_views=len(views[0]),
        size=_SIZE,
        pack=partial(clip_in_ivf, samples),
    )
    dali = DaliDecoder(lambda: batch, graph, threads=2, device_id=device_id)
    for _ in range(_BATCHES):
        _, outputs = dali.run()
        for view, output in enumerate(outputs):
            pixels = np.asarray(output.as_cpu().as_tensor())
            if pixels.shape != expected[:, view].shape:
                raise RuntimeError(f"DALI ({device}) decoded H.264 to {pixels.shape}, not {expected[:, view].shape}")
            levels = np.abs(pixels - expected[:, view]).mean(axis=(2, 3, 4))
            if levels.mean(axis=1).max() > MAX_LEVELS or levels.max() > MAX_OF_FRAME:
                raise RuntimeError(
                    f"DALI ({device}) decoded clips of H.264 to other pixels than the CPU: {levels.mean():.1f} levels "
                    f"in the mean, {levels.max():.1f} in a frame, where {MAX_LEVELS:g} and {MAX_OF_FRAME:g} are allowed"
                )


def _plain_batch(colours: np.ndarray) -> EncodedBatch:
    """Return a clip of eight plain frames per colour, each clip of another size."""
    clips, parts = [], []
    for number, colour in enumerate(colours):
        height, width = 240, 320 + 96 * number
        jpeg = io.BytesIO()
        Image.fromarray(np.full((height, width, 3), colour, dtype=np.uint8)).save(jpeg, "JPEG")
        view = View(Crop(10, 20, 200, 160, bool(number)))
        clips.append(ClipRequest(number, np.arange(8), (view,)))
        parts.append([np.frombuffer(jpeg.getvalue(), dtype=np.uint8)] * 8)
    return _batch_of(clips, parts)


@dataclass(frozen=True)
class _Samples:
    """The part of a corpus that decoding needs, for the samples in `_GROUPS`."""

    height: tuple[int, ...] = (96, 70)
    width: tuple[int, ...] = (160, 130)

    def layout(self, _: int) -> Layout:
        """Return the layout of all of them."""
        return video_layout(4)


def _video_batch(samples: _Samples) -> EncodedBatch:
    """Return a clip of each sample, of which the second starts in its second group; the frames differ in colour."""
    clips, parts = [], []
    for row, numbers in enumerate(([0, 2, 5, 7, 7, 3, 6, 1], [4, 5, 6, 7, 7, 4, 6, 5])):
        frames, height, width = np.array(numbers), samples.height[row], samples.width[row]
        views = (View(Crop(0, 0, height, width, False)), View(Crop(7, 40, height - 20, width - 60, True)))
        clips.append(ClipRequest(row, frames, views))
        groups = [base64.b64decode(_GROUPS[row][part]) for part in np.unique(samples.layout(row).parts_of(frames))]
        parts.append([np.frombuffer(group, np.uint8) for group in groups])
    return _batch_of(clips, parts)


def _batch_of(clips: list[ClipRequest], parts: list[list[np.ndarray]]) -> EncodedBatch:
    request = BatchRequest(0, np.arange(len(clips)), tuple(clips), len(clips[0].views))
    return EncodedBatch(request, request.clips, tuple(parts), (False,) * len(clips))


_GROUPS = (
    (
        "AAABZ2QADKxMIhRtNQICBUAAAAMAQAAADwPFCoRgAAABaMhCBPLAAAABZYiCDEIoDMcg4AB2NAAEBGfCwqjQM9hQVoiFPiB9EQp8QD6IhT"
        "4gfREKfED0RFPhYFaIhT4gfREKehA9GhmsGRsqPiSRXR8SS9pSYl9SkxJOpSYkm8SRamiBA5aJZ3tKyxL3iSdRL6iX3iSVeJJvEkq82DIb"
        "Kj4kl7SkxPtEvqJdal1Eut5dRL7zYMhsqPiX2iXWontO5faJdbxLrUS63l4klamwZGyo+JJ2iSbxOtol1qXiX3iSbxOtSkrAAAABQZocGK"
        "NwM1IPjQABANxmIH8aHGYh/GhxmIH8aHGYgfxoHGYgfxocZiB/GhxlCB/GhxmIH8aHGSCH8acXhQWTY53bHO7Y57YpneKbxT4onFEIsUTi"
        "8GQ2TY57Yp8U3inWKfFErFOsc6viiVi8GRskfjndsc6tinxT4oiWKbWOdXxWsUSsXgyGyR+OJ+xxNsUTjKtinxRHitYp8Q5fF4MhsvY57Y"
        "p1inWOr7FPjnV8VeIJeOJvgAAAAUGaKgYuD8HYIcX4wAAQBo0DjMZUYxpxmIHjGNOMxDxjG8ZiB4xjTjMQ8YxpxmIHljT4D9qMDHA/pDMc"
        "/a2xdgZhyDsfjifsUTiicUTinxxK9jnviiJYq1i8GQ2XsUTiicU+KdYolYp8U6xXimli8GQ2Q7sUTiiNYonFOsUTinxXinxxK9i8GQ2XH4"
        "onFE4rxz+xROOf/FErFErFaxeDIbId2KJx2vY7+xz/YrxDvFeKJxXgAAABQZo7Bi2AT5rRgAcZrbGe2M3tjK2xkj0fjPbGW9sZvbGVtjaE"
        "OVjp3rGb2xnrGb2xhOsRbxD47esQ+LwZDZVjPbFEvGesQ7xD45bYzesZ6xG8XgyNlbEeOfWI8Z7Yp8d6xBOK8d7YvBkbKsZ6xROIJxBOIJ"
        "xT472xC4rxeDI2VYonFE47VsU+IfHesV4z1iic",
        "AAABZ2QADKxMIhRtNQICBUAAAAMAQAAADwPFCoRgAAABaMhCBPLAAAABZYiBAhCMGQBshwA0/6+evTyv+f9PXp/093nr1YMg2Tee/W9vPv"
        "1vfb281AyDZdfb28+/T/r5/19vWDINkf9auf9fPd519fP/29UDIGyb32987+vnS9e75sGQ2XXc+/Xz/r7e3vn/YAAAAUGaHBim9YXvxXxg"
        "AAgIRwOMyX/GcYMdxn47jOMH4zXjuM4wfjPx3GcYMdxmv8XgyGyHbGcvxxP+IJxj+xn/jn9jP/EErHf+LwZDZfxxP+IfGf+M/8Y/sQ6xD4"
        "x/YrxeDI2Q7Y4n2IJxj+xj+xj+x37HP7EPiPF4Mhsh2xBOKfGP7GP7GfsY/sd+xBOM17F4MjZfxBOO/Yx/Ywn2M/Yx/Yz9jNf4h8AAAAFB"
        "mioGLQCCJDgAGYwAA9jLEn0Y4zE/Rg4zEnj4wcZifowcZifHxg4zE/Rg4zEnj4wcZifowcZifHxgOfAznJHPvjid8d74598U+OJ3xTvFO8"
        "cS9YugoLK+Oe+Od3xzu+IbN4p3ineKp4wlaxRG8XgyNlR3HE7453vjib44l6xROOd2xzvWKfFPi8GTZXxROKfHO9Yp8VvFPiLN457Y7uxe"
        "DJskdxzvfEE4p8Q+O98URPFU8U+K8AAAAUGaOwYuA1KQ4AByOAASxmbowcZiT0YDjMT/GA4zE+jAcZYk9GA4zEn8YA4yhPowHGUJ9GA4zE"
        "/xgOLkEOPjn/xxLvimJeOf2Od+xxLviiccS/Ygk3i8GQ2XHcc7vjnfsc/+KfFO8c/2KJeIJN4rxeDI2XHccTfFE4onHO/Y5/Yp3it4oieO"
        "Jd8XMIcfHNv/FEPiCcU+MJN/44l2xRLxzv2KJeLwZDZfxzu+KJeMf2Of2KJxHinxzu2O37A=",
    ),
    (
        "AAABZ2QAC6xMIhJdNQICBUAAAAMAQAAADwPFCoRgAAABaMhCBPLAAAABZYiCDEIoDMHIOAAdg6AAICM9CB9BkKfED6IhT2IB9EQU9CB9EQ"
        "p8QPoMhT4geiIU9CB9EQp6dpsGRsrRJL2iSbRL6lJiSHaqJJ1Ek0qKs0YFBZWiSD7RLreJJWoklaiSVeJJV4nVk+6ZmoGQ2VBRiX2iSVqU"
        "jUS63iSVeJJo7LqJJ2TYoDH6UlxLvUSTeJJd4l7xL0sSTq/AAAABQZocGKNwYZmPg6AAIBuMxAP4MixmIB/ERYyKEP404zEP404zEP404y"
        "wsrxp4C7pDmPxnbPgyNlHEu2OJ+xTFtRxNsUSsUTiiTZHd8Xgwg2SCjjifYp1iiVinWOdXxxKvjib4hcXgwgbL2KJx3bFPiiVivFErFE45"
        "b4uhQbY5xW2IIy+KaeKfFXinxz74jwAAAUGaKgYvBaCWlrWsYAAejA4yQQ8sacZiHjGNOMoQ8YxvGWIeWNOMxDxjGnGYh4xjesBq7Wj8R4"
        "vBkbLscT9iicUSsUQ6xxKvjtexROO3/i8GEGyHY/HEv7FErFNLFN4rWKfHPZjO+LwYQGyHY/FE4p1iicY5f2KJWKJx3/jOzF0KD9iiM/js"
        "V+xz+xTvFbxz3xTvEeAAAAFBmjsGLcDoo+JAAEAjGe2M4+Pxm9sZvR+M4+Pxm9sZvR+M2rY3BkbKsd7Yxp6x3tjn1jvWO9sd6xHi8GQbK2"
        "MJ1jN6xj6x29Yz2xG8Q3jt6zY8LxXW9Y+x3tjN7Yz1jPbFeO9Y71ivF71jHesZ6xnbEO8Z6xG8Q+I8",
        "AAABZ2QAC6xMIhJdNQICBUAAAAMAQAAADwPFCoRgAAABaMhCBPLAAAABZYiBAhCKBhADZDgGn/T/rkc/6f9P/z/r6wZBsmz28/6e3/Eq/W"
        "9981AwgNl0/6+3t3K8/6+e36bA8QVl1vPv0rud/T/r7advNiAHOtZ/1qMtDdpvb29u8AAAAUGaHBimx4XvW9YIAAEA6OBxnLHcZUYx3GcF"
        "MdxmoxjuM5Y7jOMY7jNRjHcZ3xeDIbL+OJ/xhN8QR44m+KJxBOK8Y1bFzAyNkO2KJxBOMf2IIJxXiCcU+M/YvBhBshivHE3xBOI8QTjH9j"
        "H9iicd+xeIBzsQTiPHO5bEE4ghUcQ+MatiElgAAAFBmioGLQFskNAAMoYAAexlCT6MHGYnx8YDjKE/Rg4zE/Rg4yRaMfB8H1GsdxmJ9GDj"
        "J1rF4Gc5HxxOjuKfFMuKd44luscSl2O3SuM7GNwM4OSjuOffHEu+MJN6xRLxTTxVvHO7YzuxeDIbKjuOae+II24p8Rm8c7tjt6xRE8Rbxe"
        "KDvjHV8a++bXISMzZfGu7YnxLjaxGsAAABQZo7Bi4CqqCAAD0cAApjMSeiR4zEh/Eh4zEnokeMxJ/Eh4zEh6JDxmJPRIeMxIfwePGao7i6"
        "BkbJHccTfHE3xRHiicc7tiiS5FE4jxeDINlxgqKJxzv2Od+xzv7GEm/scTbHEu2IXF4Mg2T4537EEm8US8Zm/Yol4ol44l2xC4vFB/xpJ+"
        "+IJN43P+za7JGOPK+IcT8RifiHwA==",
    ),
)
