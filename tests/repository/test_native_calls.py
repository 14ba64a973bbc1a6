"""Every call that hands memory to C, or takes memory that nobody has written, is listed with what makes it safe.

    python -m tests.repository.test_native_calls      # prints the calls as the table names them

A new one fails until its requirement (alignment, padding, contiguity, length, lifetime) was looked up and its reason
stands in SAFE. What is said of sizes is tried between guard pages: tests/preprocess/encode/test_odd_sizes.py and
tests/pipelines/decoding/test_crops.py.
"""

import ast
from collections.abc import Iterable, Iterator

from tests.support.calls import expressions_in, expressions_of

PACKAGES = ("mae3d", "preprocess", "pipelines", "launch")

# The last part of a call's name; what C is given is a pointer, a stride or a length, or memory comes without values.
NATIVE = {
    *("frombuffer", "frombytes", "fromarray", "from_buffer", "from_buffer_copy", "from_buffers", "py_buffer"),
    *("foreign_buffer", "from_address", "memoryview", "mmap", "memmap", "open_memmap", "memory_map", "as_strided"),
    *("sliding_window_view", "readinto", "readinto1", "recv_into", "preadv", "fromfile", "unpack_from", "pack_into"),
    *("from_numpy", "from_dlpack", "data_ptr", "cudaHostRegister", "cudaHostUnregister"),
    *("external_source", "feed_input", "as_reshaped_tensor", "as_tensor", "as_cpu"),
    *("reformat", "to_ndarray", "from_ndarray", "from_numpy_buffer", "to_image", "from_image", "planes"),
    *("CDLL", "PyDLL", "LoadLibrary", "byref", "pointer", "addressof", "string_at", "memmove", "memset"),
    *("empty", "empty_like", "empty_strided", "new_empty", "ndarray"),
}
NATIVE_MODULES = ("simplejpeg", "ctypes", "torch.ops")  # all that is called in them


_COPIES = "Pillow copies the array, and makes strides contiguous first"
_OWN_ARRAY = "a contiguous array of this function's own, which torch keeps alive"
_INITIALISED = "the constructor draws all values before it returns"
_WHOLE = "every element is assigned before it is read"
_EMPTY = "no elements"
_PINNED = "address and length are one tensor's, which lives until it is unregistered"

_TORCH = "torch knows shapes and strides of both"
_LUMA = (
    "odd luma is padded to whole pairs of rows and columns; chroma is half of it, rounded up, or refused; rows are "
    "contiguous"
)
_SWSCALE = (
    "formats whose last chroma swscale leaves unwritten at odd sizes go through another; of all others it reads no "
    "filler and writes every pixel"
)

SAFE = {
    "launch.common.entry.adopt_orphans ctypes.CDLL": "the C library that Python is linked to; functions take any types",
    "launch.common.entry.adopt_orphans ctypes.CDLL(None).prctl": "takes five integers, and keeps none",
    "launch.common.folder_needs._fallocate ctypes.CDLL": "the C library that Python is linked to; types are set",
    "launch.common.folder_needs._fallocate ctypes.get_errno": "reads this thread's copy",
    "launch.common.folder_needs._map mmap": "a file of six bytes that it has just written, read only",
    "launch.common.machine_checks.driver_cuda ctypes.CDLL": "a missing library is an OSError that is caught",
    "launch.common.machine_checks.driver_cuda ctypes.byref": "cuDriverGetVersion writes one int, into the one there",
    "launch.common.machine_checks.driver_cuda ctypes.c_int": "the int that cuDriverGetVersion writes",
    "launch.inference.embeddings.embed_videos.columns_of from_numpy": "read only, while the batch lives",
    "launch.inference.timeline.Reader.columns_of from_numpy": "read only, while the batch lives",
    "launch.inference.timeline._jpeg simplejpeg.encode_jpeg": "(H, W, 3) of uint8, contiguous; simplejpeg copies none",
    "launch.report.timeline_page._whole_frames fromarray": _COPIES,
    "launch.inference.propagation._Video.overlay fromarray": _COPIES,
    "launch.inference.propagation._Video.scaled fromarray": _COPIES,
    "launch.inference.probing._tokens open_memmap": "NumPy makes the file as long as the array; it begins as zeros",
    "launch.report.moments_page._pictures fromarray": _COPIES,
    "launch.search._embedded_query from_numpy": "read only, while the batch lives",
    "mae3d.analysis.logistic.Samples.__init__ from_numpy": _OWN_ARRAY,
    "mae3d.analysis.logistic.Samples._read from_numpy": _OWN_ARRAY,
    "mae3d.analysis.logistic._descend.objective from_numpy": _OWN_ARRAY,
    "mae3d.analysis.logistic._standardised from_numpy": "contiguous; the subtraction reads it before it returns",
    "mae3d.analysis.logistic.fit_path from_numpy": _OWN_ARRAY,
    "mae3d.analysis.probes._tokens from_numpy": _OWN_ARRAY,
    "mae3d.analysis.probes.attentive_scores from_numpy": _OWN_ARRAY,
    "mae3d.analysis.probes.attentive_scores.gradients from_numpy": "row numbers; torch checks an index",
    "mae3d.analysis.propagation.frame_features from_numpy": _OWN_ARRAY,
    "mae3d.analysis.propagation.patch_labels from_numpy": _OWN_ARRAY,
    "mae3d.analysis.reconstruct.nearest_visible empty_like": _WHOLE,
    "mae3d.model.blocks.TiledAttention.backward empty_like": "the tiles cover each query of each head once",
    "mae3d.model.blocks.TiledAttention.forward empty_like": "the tiles cover each query of each head once",
    "mae3d.model.blocks._shares new_empty": "beta=0 passes it over, NaN too",
    "mae3d.checkpoints.snapshot.Snapshot.__init__ empty": _EMPTY,
    "mae3d.checkpoints.snapshot.Snapshot._reserve cudaHostRegister": _PINNED,
    "mae3d.checkpoints.snapshot.Snapshot._reserve data_ptr": _PINNED,
    "mae3d.checkpoints.snapshot.Snapshot._reserve empty": "each slice is copied into its part",
    "mae3d.checkpoints.snapshot.Snapshot.close cudaHostUnregister": _PINNED,
    "mae3d.checkpoints.snapshot.Snapshot.close data_ptr": _PINNED,
    "mae3d.checkpoints.snapshot.Snapshot.close empty": _EMPTY,
    "mae3d.io.contact_sheet._enlarged fromarray": _COPIES,
    "mae3d.io.contact_sheet._fitting fromarray": _COPIES,
    "mae3d.io.contact_sheet._panel fromarray": _COPIES,
    "mae3d.io.contact_sheet._save_gif fromarray": _COPIES,
    "mae3d.io.contact_sheet.colour_scale fromarray": _COPIES,
    "mae3d.io.label_maps.write_ids fromarray": _COPIES,
    "mae3d.io.png.encode_png from_ndarray": "PyAV copies the rows of a contiguous array into lines of its own",
    "mae3d.io.png.png_header unpack_from": "as many bytes are there, or it returns before",
    "mae3d.io.png.png_pixels to_ndarray": "PyAV cuts off what fills the lines; a damaged picture is an error before",
    "mae3d.model.encoder.Encoder.__init__ empty": _INITIALISED,
    "mae3d.model.encoder.Positions.__init__ empty": _INITIALISED,
    "mae3d.model.mae.Decoder.__init__ empty": _INITIALISED,
    "mae3d.model.masking.mask_noise empty": "the generator fills all of it",
    "mae3d.model.masking.mask_noise from_numpy": _OWN_ARRAY,
    "mae3d.video.clip.read_clip from_numpy": _OWN_ARRAY,
    "mae3d.video.clip.centred fromarray": _COPIES,
    "mae3d.video.clip.centred_levels fromarray": _COPIES,
    "mae3d.video.clip.centred reformat": "swscale reads no filler and writes every pixel of these formats, at any size",
    "mae3d.video.clip.centred to_ndarray": "PyAV cuts off what fills the lines, and turns lines from the bottom up",
    "mae3d.video.orientation.orientation frombuffer": "a copy of the matrix: nine int32, of which five are read",
    "mae3d.weights.pickles._DType.number frombuffer": "bytes as many as the type has, which is one of numbers",
    "pipelines.decoding.clips.copied_views as_tensor": "DALI refuses views of different shapes",
    "pipelines.decoding.clips.copied_views empty": "the copies of all views fill it",
    "pipelines.decoding.clips.copied_views from_dlpack": "the caller holds the outputs until the copies have run",
    "pipelines.decoding.crops.Cropper._memory empty": "each view is resized into its part at once",
    "pipelines.decoding.crops.Cropper._memory from_numpy": "used again once nobody refers to it",
    "pipelines.decoding.crops._native empty": "both are resized into at once",
    "pipelines.decoding.crops._native from_numpy": _OWN_ARRAY,
    "pipelines.decoding.crops.cut_on_device empty": "each view is resized into its part at once",
    "pipelines.decoding.crops.resize_by_torch torch.ops.aten._upsample_bilinear2d_aa.out": _TORCH,
    "pipelines.decoding.native._loaded ctypes.CDLL": "compiled from resize.c of this version, by this user",
    "pipelines.decoding.native._loaded.resize data_ptr": "sizes and steps are the tensors' own; rows are dense",
    "pipelines.decoding.dali.JpegGraph.outputs external_source": "DALI copies the arrays as they come",
    "pipelines.decoding.dali.VideoGraph.inputs frombuffer": "bytes of a file of this batch, which the array keeps",
    "pipelines.decoding.dali.VideoGraph.outputs external_source": "DALI copies the arrays as they come",
    "pipelines.decoding.self_test._plain_batch fromarray": _COPIES,
    "pipelines.decoding.self_test._plain_batch frombuffer": "bytes of a whole JPEG, which the array keeps alive",
    "pipelines.decoding.self_test._test_jpeg as_cpu": "a copy of DALI's",
    "pipelines.decoding.self_test._test_jpeg as_tensor": "views of one shape, looked at before the next batch",
    "pipelines.decoding.self_test._test_video as_cpu": "a copy of DALI's",
    "pipelines.decoding.self_test._test_video as_tensor": "views of one shape, looked at before the next batch",
    "pipelines.decoding.self_test._video_batch frombuffer": "bytes of a whole group, which the array keeps alive",
    "pipelines.decoding.dali.dense_clips as_reshaped_tensor": "DALI refuses frames that lie apart",
    "pipelines.decoding.dali.dense_clips from_dlpack": "cut into views before DALI uses its memory again",
    "pipelines.decoding.clip_decoder.ClipDecoder.decode_all empty": "every wanted frame is written, or an error raised",
    "pipelines.decoding.clip_decoder.ClipDecoder.decode_all from_numpy": _OWN_ARRAY,
    "pipelines.decoding.transforms._colour empty_like": _WHOLE,
    "pipelines.decoding.transforms._erase from_numpy": _OWN_ARRAY,
    "pipelines.reading.shard_reader.ShardReader._read_on frombuffer": "slices end where the bytes that were read end",
    "pipelines.samples.labels.read_labels empty": "each entry of a dictionary has a row that is assigned to it",
    "pipelines.stream.ClipStream._batch from_numpy": "positions, status and rows of this batch alone",
    "pipelines.stream.labels_of from_numpy": _OWN_ARRAY,
    "preprocess.dataset.dataset.Dataset.part_rows empty": _EMPTY,
    "preprocess.dataset.dataset.mapped_numbers empty": _EMPTY,
    "preprocess.dataset.dataset.mapped_numbers frombuffer": "NumPy knows the buffer's length",
    "preprocess.dataset.index._map_table memory_map": "Arrow knows the file's size",
    "preprocess.dataset.writer._Rows._mapped from_buffers": "as many numbers as were mapped",
    "preprocess.dataset.writer._Rows._mapped mmap": "mmap refuses a shorter file",
    "preprocess.dataset.writer._Rows._mapped py_buffer": "the buffer keeps the mapping alive",
    "preprocess.demo.objects.Shape.paste fromarray": _COPIES,
    "preprocess.demo.objects._draw_digit fromarray": _COPIES,
    "preprocess.demo.pictures._draw_noise fromarray": _COPIES,
    "preprocess.demo.pictures._look_at_waves fromarray": _COPIES,
    "preprocess.demo.pictures._tile fromarray": _COPIES,
    "pipelines.decoding.transforms._augment from_numpy": "a copy that NumPy has just made; the batch takes its values",
    "preprocess.encode.decoder_main.main ctypes.CDLL": "the C library that runs already",
    "preprocess.encode.decoder_main.main ctypes.CDLL(None).prctl": "the kernel reads an int and an unsigned long",
    "preprocess.encode.decoder_main.main ctypes.c_ulong": "as wide as prctl's second argument",
    "preprocess.encode.decoder_main.main mmap": "the parent has made the page as long; assignments are of its length",
    "preprocess.encode.images.decode_strictly simplejpeg.decode_jpeg": "is given the length; allocates the pixels",
    "preprocess.encode.images.encode_planes simplejpeg.encode_jpeg_yuv_planes": _LUMA,
    "preprocess.encode.frame_store._resized fromarray": _COPIES,
    "preprocess.encode.frame_store._rgb fromarray": _COPIES,
    "preprocess.encode.pixels._of_pnm.levels frombuffer": "NumPy knows the length; too few values are refused",
    "preprocess.encode.video_frames.LevelReader.levels to_ndarray": "PyAV cuts off what fills the lines, turns none",
    "preprocess.inspect.filmstrip._shown fromarray": _COPIES,
    "preprocess.encode.group_encoder.GroupEncoder._put planes": "read in plane_rows",
    "preprocess.encode.group_encoder.GroupEncoder.add planes": "written in plane_rows: the whole width of every line",
    "preprocess.encode.video_frames.FrameScaler._planes planes": "read in plane_rows",
    "preprocess.encode.video_frames._mapped frombuffer": "as many bytes as the plane had",
    "preprocess.encode.video_frames.picture_planes from_ndarray": "PyAV copies the pixels line by line",
    "preprocess.encode.video_frames.plane_rows frombuffer": "height times line size, of which the width is read",
    "preprocess.inspect.filmstrip._frames_of_group empty": "the frame is written into all of it",
    "preprocess.inspect.filmstrip._frames_of_group fromarray": _COPIES,
    "preprocess.inspect.statistics._part_bytes empty": _EMPTY,
    "preprocess.workers.decoder._Child.__init__ mmap": "the file was made that long on the line before",
    "mae3d.video.listing._read empty": _WHOLE,
    "mae3d.video.listing.list_frames empty": _EMPTY,
    "mae3d.weights.bare_encoder.read_safetensors frombuffer": "torch refuses a count beyond the bytes; it is copied",
    "mae3d.video.packets.PacketTable.from_bytes frombuffer": "NumPy refuses a count beyond the bytes, and keeps them",
    "mae3d.video.packets.PacketTable.needed_at_all empty": _EMPTY,
    "mae3d.video.pictures.Pictures.rgb frombuffer": "lines of RGB, as many as were requested; kept meanwhile",
    "mae3d.video.pictures.Pictures.rgb planes": "RGB has one plane",
    "mae3d.video.pictures.scaled_planes reformat": _SWSCALE,
    "mae3d.video.pictures.Pictures.rgb reformat": "11,569 odd sizes: equal under any MALLOC_PERTURB_",
    "preprocess.dataset.dataset.Dataset empty": _EMPTY,
    "mae3d.video.packets.Packets.none empty": _EMPTY,
    "preprocess.encode.packet_index._table empty": _EMPTY,
    "preprocess.inspect.curate._flagged frombuffer": "as many bytes as measures.py has written; copied at once",
    "preprocess.inspect.curate._flagged memmap": "the file is made as long before",
    "preprocess.inspect.filmstrip._frames_in_place.decoded fromarray": _COPIES,
    "preprocess.inspect.near_duplicates._candidates empty": _EMPTY,
}


def native_calls() -> set[str]:
    """Return `module.function call` of each call into C of the four packages."""
    return set(calls_in(expressions_of(PACKAGES)))


def calls_in(expressions: Iterable[tuple[str, ast.expr]]) -> Iterator[str]:
    for where, found in expressions:
        if isinstance(found, ast.Call | ast.Attribute) and (name := native_name(found)):
            yield f"{where} {name}"


def native_name(node: ast.Call | ast.Attribute) -> str:
    """Return the name of what is called if it is one of C's, else ""; planes are read without a call."""
    if isinstance(node, ast.Attribute):
        return "planes" if node.attr == "planes" else ""
    name = ast.unparse(node.func)
    if name.startswith(NATIVE_MODULES):
        return name
    last = name.rpartition(".")[2]
    return last if last in NATIVE else ""


def test_fault_44_every_call_into_c_has_its_reason() -> None:
    found = native_calls()
    assert not found - SAFE.keys(), "look up what these require, for odd and tiny sizes too, and add the reason"
    assert not SAFE.keys() - found, "these are no more"


def test_fault_44_the_walk_finds_calls_wherever_they_stand() -> None:
    source = """
import simplejpeg
TABLE = np.frombuffer(data)
class A:
    @cached(np.memmap(path))
    def f(self, x=np.empty(3)):
        def g():
            return [simplejpeg.encode_jpeg(p) for p in self.frame.planes]
        return torch.ops.aten.add.out(g())
"""
    assert set(calls_in(expressions_in(ast.parse(source), "m"))) == {
        *("m frombuffer", "m.A.f memmap", "m.A.f empty", "m.A.f torch.ops.aten.add.out"),
        *("m.A.f.g simplejpeg.encode_jpeg", "m.A.f.g planes"),
    }


if __name__ == "__main__":
    print(*sorted(native_calls()), sep="\n")
