"""Frames of 8 and 16 bits in the files that microscopes, thermal cameras and clinics write: PNG, TIFF, DICOM."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian

from mae3d.io.png import encode_png

PATIENT = "Doe^Jane"
SERIES = "1.2.826.0.1.3680043.8.498.1"


def random_frames(count: int, *, channels: int = 1, bits: int = 16, size: tuple[int, int] = (16, 20)) -> np.ndarray:
    """Frames of noise, (count, H, W, C) uint8, or uint16 of that many bits."""
    kind = np.uint8 if bits <= 8 else np.uint16
    return np.random.default_rng(count + channels).integers(0, 1 << bits, (count, *size, channels), dtype=kind)


def write_png_folder(folder: Path, frames: np.ndarray) -> Path:
    """Frames of 1 or 3 channels as numbered PNGs."""
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames):
        (folder / f"img_{number:05d}.png").write_bytes(encode_png(frame))
    return folder


def write_dicom(path: Path, frames: np.ndarray, *, stored: int = 0, **tags: Any) -> Path:
    """A DICOM file of frames (T, H, W, C) that are not compressed, or as `compress=SYNTAX` has them.

    Args:
        path: the file.
        frames: whole numbers of 8 or 16 bits.
        stored: bits that are used of each; 0 = all.
        tags: elements by their keywords, None = without; they replace those that the frames make.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width, channels = frames.shape
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = tags.pop("syntax", ExplicitVRLittleEndian)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.3.1"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{SERIES}.{abs(hash(path.name)) % 10**9}"
    dataset.SeriesInstanceUID, dataset.PatientName = SERIES, PATIENT
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = height, width, channels
    dataset.PhotometricInterpretation = "RGB" if channels == 3 else "MONOCHROME2"
    if channels == 3:
        dataset.PlanarConfiguration = 0
    dataset.NumberOfFrames = count
    dataset.BitsAllocated = 8 * frames.itemsize
    dataset.BitsStored = stored or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(frames.dtype.kind == "i")
    data = frames.tobytes()
    dataset.PixelData = data + bytes(len(data) % 2)
    dataset["PixelData"].VR = "OW" if frames.itemsize == 2 else "OB"
    compress = tags.pop("compress", None)
    for name, value in tags.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    if compress:
        dataset.compress(compress)
    dataset.save_as(path, enforce_file_format=True)
    return path


def encapsulated(path: Path, parts: list[bytes], syntax: str, **tags: Any) -> Path:
    """Replace the pixels of a DICOM file by compressed ones, a part per frame, or one for all."""
    dataset = pydicom.dcmread(path)
    dataset.PixelData = encapsulate(parts)
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(path)
    return path
