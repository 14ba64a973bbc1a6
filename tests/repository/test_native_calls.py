"""Every call that hands memory to C, or takes it from there, is listed here with what makes it safe at any size."""

import ast

from tests.support.calls import functions_with, name_of

NAMES = {"encode_jpeg_yuv_planes", "encode_jpeg", "decode_jpeg", "decode_jpeg_header", "frombuffer", "frombytes"}
NAMES |= {"to_ndarray", "from_ndarray", "reformat", "CDLL", "byref", "from_numpy", "from_dlpack", "as_strided"}
NAMES |= {"memmap", "open_memmap", "mmap", "memoryview", "py_buffer", "feed_input", "from_buffer", "addressof"}

# What makes it safe for odd and tiny sizes ─► the functions.
SAFE = {
    "luma is padded to even sizes by repetition, rows are contiguous; tests: test_fault_44_… in test_video_frames.py": (
        "preprocess.encode.images.encode_planes",
    ),
    "the source of a JPEG is bytes with their length; the pixels are the library's own array": (
        "preprocess.encode.images.decode_strictly",
    ),
    "Pillow encodes from its own image": (
        "preprocess.demo.clips.render_demo",
        "preprocess.encode.images.stored_frame",
    ),
    "FFmpeg allocates and pads both frames; planes are read as their rows' bytes, cut to the plane's own width": (
        "mae3d.video.clip.square",
        "preprocess.encode.video_frames.FrameEncoder._planes",
    ),
    "bytes that were made in the line itself; NumPy compares their length with the shape": (
        "mae3d.video.orientation.orientation",
        "pipelines.reading.shard_reader.ShardReader._read_on",
        "preprocess.encode.video_frames._mapped",
    ),
    "the bounds of Arrow's buffer are checked by NumPy, and the array keeps the buffer": (
        "preprocess.dataset.dataset.mapped_numbers",
    ),
    "a file that was flushed, mapped at the size that was written": (
        "launch.inference.probing._tokens",
        "preprocess.dataset.writer._Rows._mapped",
    ),
    "a page of one fixed size that both sides map; no pointer leaves the module": (
        "preprocess.encode.decoder_main.main",
        "preprocess.workers.decoder._Child.__init__",
    ),
    "calls of the system or of the driver with numbers, and one int of our own": (
        "docker.entry.adopt_orphans",
        "launch.common.machine_checks.driver_cuda",
    ),
    "torch keeps the array, whose shape and strides it takes over; negative strides it refuses": (
        "launch.inference.embeddings.embed_videos.columns_of",
        "mae3d.analysis.probes._tokens",
        "mae3d.analysis.probes.attentive_scores",
        "mae3d.analysis.probes.attentive_scores.gradients",
        "mae3d.model.masking.mask_noise",
        "mae3d.video.clip.read_clip",
        "pipelines.decoding.crops.Cropper._memory",
        "pipelines.decoding.fallback._decode",
        "pipelines.decoding.transforms._erase",
        "pipelines.stream.ClipStream._batch",
        "pipelines.stream.labels_of",
    ),
    "views of DALI's memory that are used before it is given back: copied, or held by an event until they are": (
        "pipelines.decoding.clips.GpuDecoding.clips",
        "pipelines.decoding.dali._plain_batch",
        "pipelines.decoding.dali.dense_clips",
    ),
}


def is_native(call: ast.Call) -> bool:
    return name_of(call) in NAMES


def test_every_call_into_c_says_what_makes_it_safe() -> None:
    listed = [function for functions in SAFE.values() for function in functions]
    assert sorted(functions_with(is_native)) == sorted(listed)
