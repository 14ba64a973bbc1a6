"""launch/common/encoders.py: a run or an image ViT, never both, never without a word on weights; embed takes either."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from launch import embed
from launch.common.tables import read_vectors
from mae3d.analysis import features
from mae3d.weights.frames import open_frame_encoder, state_hash
from pipelines.config import DataConfig
from pipelines.samples.corpus import open_corpus
from pipelines.stream import evaluation_clips

IMAGE = ("--encoder", "timm:test_vit", "--encoder_weights", "none")
SMALL = ("--encoder_frames", "3", "--encoder_size", "32")


def test_an_image_vit_embeds_clips_at_the_sampling_of_foreign_checkpoints(shards: Path, tmp_path: Path) -> None:
    table = tmp_path / "vectors.parquet"
    command = ["--data.shards", str(shards), "--out", str(table), "--device", "cpu", "--layer", "2"]
    assert embed.main([*IMAGE, *SMALL, *command]) == 0
    encoder = open_frame_encoder("test_vit", "none", num_frames=3, img_size=32)
    corpus = open_corpus([shards])
    clips = DataConfig(sampling_rate=4, target_fps=30)
    vectors, rows = read_vectors(table)
    stream = evaluation_clips(corpus, clips, rows=rows, num_frames=3, size=32, batch_size=len(rows))
    expected = features.embed(encoder, next(stream).clips[:, 0], layer=2)
    stream.close()
    torch.testing.assert_close(torch.tensor(vectors), expected, rtol=1e-4, atol=1e-4)
    settings = json.loads(pq.read_schema(table).metadata[b"mae3d"])
    assert settings["model"] == f"timm:test_vit {state_hash(encoder)}"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "--run RUN or --encoder"),
        (("--run", "x", *IMAGE), "--run RUN or --encoder"),
        (IMAGE[:2], "FILE.*download.*none"),
        (("--encoder", "test_vit", "--encoder_weights", "none"), "timm:NAME"),
        (("--run", "x", *IMAGE[2:]), "--encoder_weights"),
        ((*IMAGE, "--encoder_size", "30"), "img_size=30.*patch_size=16"),
        ((*IMAGE[:3], "absent.pth"), "absent.pth"),
    ],
)
def test_what_names_no_model_is_refused(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], said: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        embed.main([*options, "--data.shards", str(shards), "--out", str(tmp_path / "v.parquet"), "--device", "cpu"])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert all(part in error for part in said.split(".*")), error
    assert not list(tmp_path.glob("*.parquet"))
