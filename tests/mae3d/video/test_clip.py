"""mae3d.video.clip: the right frames of a video, upright and square, as the pipeline would cut them."""

import time
from contextlib import nullcontext
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from mae3d.model.config import EncoderConfig
from mae3d.model.encoder import Encoder
from mae3d.video import clip as module
from mae3d.video.clip import VideoError, clip_frames, read_clip
from mae3d.video.reader import open_video
from pipelines.decoding.channels import with_channels
from pipelines.sampling.augment import evaluation_crops
from pipelines.sampling.windows import strided_windows
from tests.support.media import frame_number, make_video, picture_of

CONFIG = EncoderConfig(preset="mae_vit_tiny_patch16", img_size=64, num_frames=4, depth=1)


def numbers(clip: torch.Tensor) -> list[int]:
    """Return the frame numbers that a clip shows; a square cut from a square loses nothing."""
    return [frame_number(Image.fromarray(frame)) for frame in clip[0].numpy()]


def test_the_middle_of_a_video_at_the_stride(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 40, size=(64, 64), fps=10)
    clip = read_clip(path, CONFIG, sampling_rate=6, target_fps=20)  # 0.3 s: every third frame
    assert clip.shape == (1, 4, 64, 64, 3)
    assert clip.dtype == torch.uint8
    assert numbers(clip) == [15, 18, 21, 24]
    with torch.no_grad():
        tokens = Encoder(CONFIG)(clip)
    assert torch.isfinite(tokens).all()


@pytest.mark.parametrize("count", [1, 2, 5, 13, 14, 40, 301])
@pytest.mark.parametrize("stride", [1.0, 3.0, 4.0, 2.5, 0.4])
def test_frames_are_those_of_the_testing_clips(count: int, stride: float) -> None:
    """The rate is steady: else only times make sense."""
    frames = clip_frames([7 + i / 25 for i in range(count)], num_frames=8, step_s=stride / 25)
    if count == 1:  # a rate cannot be measured
        assert frames == [0] * 8
    else:
        expected = strided_windows(count, num_frames=8, stride=stride, num_clips=1)[0]
        assert np.abs(np.subtract(frames, expected) % count).tolist() == [0] * 8


def test_a_clip_of_a_long_video_costs_no_more_than_of_a_short_one() -> None:
    """An hour has 108,000 frames, and a clip every second looks them up 57,600 times."""
    seconds = [i / 30 for i in range(108_000)]
    began = time.process_time()
    for start in range(200):
        assert clip_frames(seconds, num_frames=16, step_s=1 / 30, start_s=start)[0] == 30 * start
    assert time.process_time() - began < 2  # 0.01; to copy the times for each frame took 20


def test_a_short_video_is_repeated(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 3, size=(64, 64), fps=10)
    assert numbers(read_clip(path, CONFIG, sampling_rate=1, target_fps=10)) == [0, 1, 2, 0]


def test_a_variable_rate_goes_by_time(tmp_path: Path) -> None:
    times = [0, 0.1, 0.2, 0.3, 0.4, 1.4, 2.4, 3.4]
    path = make_video(tmp_path / "a.mkv", len(times), size=(64, 64), times=times)
    chosen = [times[n] for n in numbers(read_clip(path, CONFIG, sampling_rate=1, target_fps=1))]
    assert chosen == [0, 0.4, 1.4, 2.4]  # shown at 0, 1, 2 and 3 s


@pytest.mark.parametrize("name", ["video_0.mov", "video_90.mov", "video_180.mov", "video_270.mov"])
def test_upright_as_in_preprocessing(media: Path, name: str) -> None:
    path = media / "videos" / "odd" / name
    with open_video(path) as video:
        frames = list(video.frames())
        middle = frames[int((len(frames) - 1) / 2)][1]
        width, height = video.upright_size(middle)
        picture = picture_of(middle, (width, height))
    side, room = min(width, height), abs(width - height)
    left, top = (-(-room // 2), 0) if width > height else (0, -(-room // 2))
    expected = picture.crop((left, top, left + side, top + side)).resize((64, 64), Image.Resampling.BILINEAR)
    config = EncoderConfig(preset="mae_vit_tiny_patch16", img_size=64, num_frames=2, depth=1)
    clip = read_clip(path, config, sampling_rate=1e-3, target_fps=30)
    assert np.abs(clip[0, 0].numpy().astype(int) - np.asarray(expected).astype(int)).mean() < 3


@pytest.mark.parametrize("kind", ["real", "odd"])
def test_real_footage_gives_a_clip(media: Path, kind: str) -> None:
    for path in sorted((media / "videos" / kind).iterdir()):
        clip = read_clip(path, CONFIG)
        assert clip.shape == (1, 4, 64, 64, 3), path
        assert clip.float().std() > 5 or path.name == "unordered.mov", path  # which is white


def test_a_file_that_is_no_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("no video")
    with pytest.raises(VideoError, match=r"a\.mp4: Invalid data"):
        read_clip(tmp_path / "a.mp4", CONFIG)
    with pytest.raises(VideoError, match="no such file"):
        read_clip(tmp_path / "b.mp4", CONFIG)
    with pytest.raises(ValueError, match="sampling_rate=0 must be above 0"):
        read_clip(tmp_path / "a.mp4", CONFIG, sampling_rate=0)


def test_a_giant_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_video(tmp_path / "a.mp4", 3)
    monkeypatch.setattr(module, "open_video", lambda path: open_video(path, max_pixels=64 * 48 - 1))
    with pytest.raises(VideoError, match=r"a\.mp4: too large.*scale the video down"):
        read_clip(path, CONFIG)


@pytest.mark.parametrize("size", [(4, 2), (3, 2), (2, 3), (1, 1)])
def test_a_bayer_pattern_that_is_not_whole_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    """swscale's assertion would end the process: a training's, too."""
    path, frame = tmp_path / "a.nut", av.VideoFrame(*size, "bayer_rggb8")
    with av.open(path, "w") as container:
        stream = container.add_stream("rawvideo", rate=10)
        stream.width, stream.height, stream.pix_fmt = *size, "bayer_rggb8"
        frame.planes[0].update(bytes(frame.planes[0].buffer_size))
        container.mux(stream.encode(frame))
    refused = pytest.raises(VideoError, match=rf"a\.nut: bayer_rggb8 frames of {size[0]}x{size[1]} pixels: .*crop")
    with refused if size != (4, 2) else nullcontext():
        assert read_clip(path, CONFIG).shape == (1, 4, 64, 64, 3)


@pytest.mark.parametrize(("size", "stored"), [((32, 64), (64, 64)), ((64, 24), (96, 64)), ((16, 64), (64, 16))])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_clip_has_the_models_shape_and_channels(
    size: tuple[int, int], stored: tuple[int, int], channels: int, tmp_path: Path
) -> None:
    """The largest box of that shape is cut from the middle; grey is the luma of colour."""
    path = make_video(tmp_path / "a.mp4", 4, size=stored)
    config = EncoderConfig(
        preset="mae_vit_tiny_patch16", img_size=size, num_frames=4, patch_size=8, in_chans=channels, depth=1
    )
    clip = read_clip(path, config, sampling_rate=1, target_fps=10)
    assert clip.shape == (1, 4, *size, channels)
    width, height = stored
    crop = evaluation_crops(height=height, width=width, num_crops=1, size=size)[0]
    with av.open(str(path)) as container:
        whole = next(container.decode(video=0)).to_image()
    box = whole.crop((crop.left, crop.top, crop.left + crop.width, crop.top + crop.height))
    expected = np.asarray(box.resize(size[::-1], Image.Resampling.BILINEAR))
    if channels == 1:
        expected = with_channels(expected, 1)
    assert np.abs(expected.astype(int) - clip[0, 0].numpy()).mean() < 2


def test_channels_that_videos_do_not_have_are_refused(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 4)
    config = EncoderConfig(preset="mae_vit_tiny_patch16", img_size=32, in_chans=4, depth=1)
    with pytest.raises(VideoError, match=r"grey or colour.*4 channels"):
        read_clip(path, config)
