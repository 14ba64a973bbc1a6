"""A file of weights is read by what it is, under any name, or refused with what was found and the remedy."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from mae3d.weights.files import WeightsError, content_hash, find_model_file, read_tensors

STATE = {"blocks.0.norm1.weight": torch.arange(300.0), "norm.bias": torch.ones(3)}


def saved(content: Any, **settings: Any) -> bytes:
    """Return the bytes that torch.save writes."""
    file = io.BytesIO()
    torch.save(content, file, **settings)
    return file.getvalue()


def with_header_of(length: int, state: dict[str, Tensor]) -> bytes:
    """Return a safetensors file whose header is filled up with blanks to a length."""
    data = safetensors.torch.save(state)
    start = 8 + int.from_bytes(data[:8], "little")
    return length.to_bytes(8, "little") + data[8:start].ljust(length) + data[start:]


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        for name in names:
            opened.writestr(name, b"content")
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.TarFile(fileobj=file, mode="w") as opened:
        opened.addfile(tarfile.TarInfo("model.pth"))
    return file.getvalue()


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, weight=np.zeros(3))
    return file.getvalue()


WEIGHTS = {
    "zip": saved({"model": STATE}),
    "legacy": saved({"model": STATE}, _use_new_zipfile_serialization=False),
    "safetensors": safetensors.torch.save(STATE),
    "safetensors that begins as a pickle": with_header_of(int.from_bytes(b"\x80\x02", "little"), STATE),
    "safetensors that begins as gzip": with_header_of(int.from_bytes(b"\x1f\x8b", "little"), STATE),
}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1234567\n"
OTHERS = [
    (b"", "is empty: download it again"),
    (POINTER, "is a Git LFS pointer, not the weights of 1,234,567 bytes: run git lfs pull"),
    (b"\n<!DOCTYPE html><html>Sign in</html>", "is a web page .*: download it again"),
    (b'<?xml version="1.0"?><Error>AccessDenied</Error>', "answer of a server, not the weights: download it again"),
    (
        b'{"metadata": {}, "weight_map": {"a": "1.safetensors"}}',
        r"index of weights in 1 files, .*1\.safetensors is miss",
    ),
    (b'{"weight_map": {"a": "../1.safetensors"}}', r"index of weights in several files that names .*\.\./1"),
    (b'{"weight_map": ["a"]}', "is a damaged index of weights in several files: download it again"),
    (b'{"model_type": "videomae"}', "is JSON text, not the weights"),
    (gzip.compress(WEIGHTS["zip"]), "is compressed by gzip: unpack it by gunzip"),
    (bz2.compress(b"weights"), "is compressed by bzip2: unpack it by bunzip2"),
    (lzma.compress(b"weights"), "is compressed by xz: unpack it by unxz"),
    (tarred(), "is a tar archive: unpack it by tar -xf"),
    (zipped(), "is an empty zip archive: download it again"),
    (zipped("model.pth", "README"), r"is a zip archive of 2 other files \(model.pth, README, ...\): unpack it"),
    (zipped("m/data.pkl", "m/constants.pkl"), r"is a TorchScript program: .*torch\.save\(program\.state_dict\(\)"),
    (npz(), r"is an \.npz of NumPy arrays \(weight\.npy, .*give a file that torch\.save has written, or a safetensors"),
    (b"\x93NUMPY\x01\x00", "is a NumPy array: give a file that torch.save"),
    (b"\x89HDF\r\n\x1a\n\0\0", "is an HDF5 file, as Keras and TensorFlow write them: give"),
    (b"\x08\x08\x12\x07pytorch", "is a protocol buffer, as ONNX and TensorFlow write them: give"),
    (b"\0\0\x06\x08\x01" + bytes(40) + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb", "is the index of a TensorFlow checkpoint"),
    (bytes(2048), "begins with zeros, as after a download that did not finish: download it again"),
    (b"\x12\x34" * 99, r"is of an unknown kind \(198 bytes that begin with b'\\x124.*: give a file that torch.save"),
    (pickle.dumps({"a": 1}, protocol=2), "is a pickle that torch.save has not written"),
    (pickle.dumps({"a": 1}, protocol=4), "is pickled by another protocol than torch.save's own, 2"),
    (saved({"model": STATE}, pickle_protocol=4), "is pickled by another protocol than torch.save's own, 2"),
]


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_are_read_by_their_content_under_any_name(kind: str, tmp_path: Path) -> None:
    for suffix in (".safetensors", ".pth", ".ckpt", ".pth.tar", ".bin", ".model", ".npz", ""):
        file = tmp_path / f"weights{suffix}"
        file.write_bytes(WEIGHTS[kind])
        read = read_tensors(file)
        assert read.keys() == STATE.keys()
        assert all(torch.equal(tensor, STATE[name]) for name, tensor in read.items())


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")  # torch's; the error says the same
@pytest.mark.parametrize(("content", "told"), OTHERS, ids=[told for _, told in OTHERS])
def test_other_files_are_refused_with_what_they_are_and_the_remedy(content: bytes, told: str, tmp_path: Path) -> None:
    for suffix in (".safetensors", ".pth"):
        file = tmp_path / f"weights{suffix}"
        file.write_bytes(content)
        with pytest.raises(WeightsError, match=told) as error:
            read_tensors(file)
        assert str(error.value).startswith(f"{file}: ")
        assert "weights_only" not in str(error.value)  # torch's advice is to run the file's code


def test_weights_in_several_files_are_read_by_their_index(tmp_path: Path) -> None:
    names = sorted(STATE)
    for suffix, write in (("safetensors", safetensors.torch.save), ("bin", saved)):
        folder = tmp_path / suffix
        folder.mkdir()
        parts = {name: f"model-0000{i}-of-00002.{suffix}" for i, name in enumerate(names)}
        for name, part in parts.items():
            (folder / part).write_bytes(write({name: STATE[name]}))
        index = folder / ("model.safetensors.index.json" if suffix == "safetensors" else "pytorch_model.bin.index.json")
        index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": parts}))
        assert find_model_file(folder) == index
        read = read_tensors(index)
        assert read.keys() == STATE.keys()
        assert all(torch.equal(tensor, STATE[name]) for name, tensor in read.items())
        before = content_hash(index)
        (folder / parts[names[1]]).write_bytes(write({names[1]: STATE[names[1]] + 1}))
        assert content_hash(index) != before
        (folder / parts[names[1]]).write_bytes(write({names[0]: STATE[names[0]]}))
        with pytest.raises(WeightsError, match=f"has {names[0]} once more"):
            read_tensors(index)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_that_are_cut_are_refused_with_what_is_missing(kind: str, tmp_path: Path) -> None:
    whole, file = WEIGHTS[kind], tmp_path / "weights.ckpt"
    for length in (30, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=r"ends (early|after|at least)|end is missing") as error:
            read_tensors(file)
        assert ": download it again" in str(error.value)
    told = {"zip": f"{len(whole) - 1:,} bytes are there", "legacy": "ends at least 1 bytes too early"}
    assert told.get(kind, f"ends after {len(whole) - 1:,} of {len(whole):,} bytes") in str(error.value)


def test_a_safetensors_file_that_is_no_whole_one_is_refused(tmp_path: Path) -> None:
    whole, file = WEIGHTS["safetensors"], tmp_path / "weights"
    for content, told in (
        (whole + b"more", rf"has {len(whole) + 4:,} bytes, and {len(whole):,} by its header"),
        (whole.replace(b'"dtype"', b'"dtypo"'), "header does not fit its tensors: download it again"),
        (whole.replace(b'"data_offsets"', b'"data_offset:"'), "its header is damaged: download it again"),
    ):
        file.write_bytes(content)
        with pytest.raises(WeightsError, match=told):
            read_tensors(file)
