"""DICOM files are read by pydicom: pixels, sizes, rates and places in a series, and nothing that names a patient.

    with open_dicom(Path("cine.dcm"), max_pixels=MAX_PIXELS) as stack:
        stack.facts
        frames = list(stack.frames([0, 1, 2]))

Grey values of s stored bits become all levels of 8 or 16 bits (`mae3d.video.levels.widened`), MONOCHROME1 inverted and
signed values from their least on; a window is of the values after RescaleSlope and RescaleIntercept. Colours become
RGB, palettes by the high byte of their entries. MPEG and H.264 inside a DICOM file are decoded as videos are.
"""

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np

from mae3d.video.errors import MediaError, raise_unless_of_the_file
from mae3d.video.levels import WINDOW_REMEDY, StackFacts, Window, widened, windowed
from mae3d.video.pictures import Pictures
from mae3d.video.reader import open_video

INSTALL = "pip install 'mae3d[medical]'"
_VIDEOS = "1.2.840.10008.1.2.4.10"  # begins the transfer syntaxes of MPEG-2 (.100) to HEVC (.108), and no others
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_READ = [  # nothing else is looked at
    *("TransferSyntaxUID", "SOPClassUID", "SeriesInstanceUID", "InstanceNumber", "NumberOfFrames", "Rows", "Columns"),
    *("SamplesPerPixel", "PlanarConfiguration", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit"),
    *("PixelRepresentation", "RescaleSlope", "RescaleIntercept", "SharedFunctionalGroupsSequence"),
    *("PerFrameFunctionalGroupsSequence", "FrameTime", "FrameTimeVector", "RecommendedDisplayFrameRate", "CineRate"),
    *("TriggerTime", "AcquisitionDateTime", "AcquisitionTime", "ContentTime", "BurnedInAnnotation"),
    *("RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor"),
    *("BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData"),
    *("BluePaletteColorLookupTableData", *_PIXELS),
]
_DIRECTORY = "1.2.840.10008.1.3.10"  # a DICOMDIR


@contextmanager
def open_dicom(path: Path, *, max_pixels: int) -> Iterator["DicomStack | EncapsulatedVideo"]:
    """Yield a DICOM file as a stack.

    Raises:
        MediaError: it holds no pixels, or cannot be read, or pydicom is not installed.
    """
    try:
        import pydicom
        import pydicom.errors
    except ImportError as error:
        raise MediaError("no_decoder", f"DICOM files need the package pydicom: {INSTALL}") from error
    with warnings.catch_warnings(action="ignore"):  # values against the standard, of which files are full
        try:
            header = pydicom.dcmread(path, defer_size=1 << 16, specific_tags=list(_READ))
            stack = _opened(path, header, max_pixels)
        except MediaError:
            raise
        except Exception as error:  # damage takes many forms: EOFError, struct.error, AttributeError, …
            raise_unless_of_the_file(error, path)
            raise MediaError("undecodable", f"damaged DICOM: {_line(error)}") from error
        yield stack


def _opened(path: Path, header: Any, max_pixels: int) -> "DicomStack | EncapsulatedVideo":
    if header.get("SOPClassUID") == _DIRECTORY or header.file_meta.get("MediaStorageSOPClassUID") == _DIRECTORY:
        raise MediaError("no_pixels", "a DICOMDIR: a list of files, which are found without it")
    if not any(name in header for name in _PIXELS) or not header.get("Rows") or not header.get("Columns"):
        raise MediaError("no_pixels", "a DICOM file without pixel data, or cut off before their end")
    if header.file_meta.TransferSyntaxUID.startswith(_VIDEOS):
        return EncapsulatedVideo(path, header, max_pixels)
    return DicomStack(path, header)


class DicomStack:
    """The frames of a DICOM file whose pictures stand alone."""

    def __init__(self, path: Path, header: Any) -> None:
        self._path, self._header = path, header
        self._photometric = str(header.PhotometricInterpretation)
        self._stored_bits = int(header.get("BitsStored", header.BitsAllocated))
        self._is_signed = bool(header.get("PixelRepresentation", 0))
        is_grey = int(header.SamplesPerPixel) == 1 and self._photometric != "PALETTE COLOR"
        self._is_float = "PixelData" not in header
        bits = 0 if self._is_float or self._stored_bits > 16 else 8 if self._stored_bits <= 8 else 16
        if self._photometric == "PALETTE COLOR":
            bits = 8
        self.facts = _facts(header, channels=1 if is_grey else 3, bits=bits)

    def frames(self, numbers: Sequence[int], *, window: Window | None = None, bits: int = 16) -> Iterator[np.ndarray]:
        """Yield frames as `mae3d.video.levels.Stack` does."""
        from pydicom.pixels import iter_pixels

        decoded = iter_pixels(self._path, indices=list(numbers))
        for number in numbers:
            try:
                levels = self._levels(next(decoded), number, window, bits)
            except MediaError:
                raise
            except StopIteration as error:
                raise MediaError("undecodable", "there are fewer frames than announced", frame=number) from error
            except Exception as error:  # of any plugin
                raise_unless_of_the_file(error, self._path)
                raise _undecodable(error, number) from error
            yield levels[..., None] if levels.ndim == 2 else levels

    def _levels(self, values: np.ndarray, number: int, window: Window | None, bits: int) -> np.ndarray:
        if self._photometric == "PALETTE COLOR":
            from pydicom.pixels import apply_color_lut

            colours = apply_color_lut(values, self._header)[..., :3]
            return colours if colours.dtype == np.uint8 else (colours >> 8).astype(np.uint8)
        if not self._is_float and not self._is_signed and self._stored_bits < 8 * values.itemsize:
            values = values & ((1 << self._stored_bits) - 1)  # above them there may be an overlay
        if window is not None:
            slope, intercept = self._rescale(number) if self.facts.channels == 1 else (1.0, 0.0)
            levels = windowed(values * slope + intercept, window, bits=bits)
        elif not self.facts.bits:
            what = "floating point" if self._is_float else f"of {self._stored_bits} bits"
            raise MediaError("needs_window", f"its values are {what}: {WINDOW_REMEDY}", frame=number)
        else:
            if self._is_signed:
                values = values.astype(np.int32) + (1 << self._stored_bits - 1)
            levels = widened(values, stored_bits=self._stored_bits)
        return ~levels if self._photometric == "MONOCHROME1" else levels

    def _rescale(self, number: int) -> tuple[float, float]:
        """Return slope and intercept of a frame: its own, those of all frames, or the file's."""
        shared = self._header.get("SharedFunctionalGroupsSequence") or []
        single = self._header.get("PerFrameFunctionalGroupsSequence") or []
        for group in (*single[number : number + 1], *shared[:1]):
            for item in group.get("PixelValueTransformationSequence") or []:
                return float(item.RescaleSlope), float(item.RescaleIntercept)
        return float(self._header.get("RescaleSlope", 1)), float(self._header.get("RescaleIntercept", 0))


class EncapsulatedVideo:
    """The frames of a DICOM file that holds one stream of video."""

    def __init__(self, path: Path, header: Any, max_pixels: int) -> None:
        self._path, self._max_pixels = path, max_pixels
        self.facts = _facts(header, channels=3, bits=8)

    def frames(self, numbers: Sequence[int], *, window: Window | None = None, bits: int = 16) -> Iterator[np.ndarray]:
        """Yield frames as `mae3d.video.levels.Stack` does; they have 8 bits, with a window too."""
        left = list(numbers)
        pictures = Pictures()
        # A file in memory, so that no copy of footage stays anywhere if this process is killed.
        handle = os.memfd_create("video")
        try:
            with os.fdopen(os.dup(handle), "wb") as file:
                file.write(_stream(self._path))
            with open_video(Path(f"/proc/self/fd/{handle}"), max_pixels=self._max_pixels) as video:
                for number, (_, frame) in enumerate(video.frames()):
                    if left and number == left[0]:
                        left.pop(0)
                        width, height = video.upright_size(frame)
                        way = video.orientation(frame)
                        yield pictures.rgb(frame, width=width, height=height, way=way).copy()
                damage = video.damage
        except av.error.FFmpegError as error:
            raise MediaError("undecodable", str(error.strerror)) from error
        finally:
            os.close(handle)
        if left or damage:
            why = f": {damage}" if damage else ""
            raise MediaError("undecodable", f"its stream of video lacks frames that are announced{why}")


def _stream(path: Path) -> bytes:
    """Return the stream of video of a file."""
    import pydicom
    from pydicom.encaps import generate_frames

    dataset = pydicom.dcmread(path, specific_tags=["PixelData"])
    return b"".join(generate_frames(dataset.PixelData, number_of_frames=1))


def _facts(header: Any, *, channels: int, bits: int) -> StackFacts:
    num_frames = int(header.get("NumberOfFrames") or 1)
    moments = ("AcquisitionDateTime", "TriggerTime", "AcquisitionTime", "ContentTime")
    moment = next((str(header.get(name)) for name in moments if header.get(name) not in (None, "")), "")
    number = header.get("InstanceNumber")
    return StackFacts(
        num_frames=num_frames,
        width=int(header.Columns),
        height=int(header.Rows),
        channels=channels,
        bits=bits,
        fps=_rate(header),
        series=str(header.get("SeriesInstanceUID") or "") if num_frames == 1 else "",
        number=int(number) if number not in (None, "") else -1,
        moment=moment,
        is_dicom=True,
        has_burned_in=header.get("BurnedInAnnotation") == "YES",
    )


def _rate(header: Any) -> float:
    """Return frames per second by the time between frames, else by the rate of display; NaN if there is neither."""
    if (time_ms := float(header.get("FrameTime") or 0)) > 0:
        return 1000 / time_ms
    steps = [float(step) for step in header.get("FrameTimeVector") or []][1:]
    if steps and sum(steps) > 0:
        return 1000 * len(steps) / sum(steps)
    for name in ("RecommendedDisplayFrameRate", "CineRate"):
        if (rate := float(header.get(name) or 0)) > 0:
            return rate
    return math.nan


def _undecodable(error: Exception, number: int) -> MediaError:
    text = _line(error)
    if "plugin" in text and ("missing" in text or "dependenc" in text):
        return MediaError("no_decoder", f"{text}: pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg")
    return MediaError("undecodable", f"frame {number}: {text}", frame=number)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
