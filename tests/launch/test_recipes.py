"""Every recipe in launch/recipes: it parses, says where it comes from, and has the batch and rate of that source."""

import re
from pathlib import Path

import pytest
import yaml

from launch.common.cli import parse
from launch.common.recipe_files import RECIPES, described
from launch.finetune import finetune
from launch.pretrain import pretrain
from launch.training.config import FinetuneConfig, PretrainConfig
from launch.training.schedule import peak_lr
from mae3d.distributed import World
from pipelines.samples.corpus import corpus_of
from tests.support.ranks import run_ranks

NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))

# Name ─► samples a step, clips a step, highest rate: computed by hand from the sources that the recipes name.
PRETRAINING = {
    "demo": (8, 8, 3e-3),
    "hvm_vit_huge14": (4, 64, 1e-4),
    "k400_vit_base": (512, 2048, 8 * 1e-4),  # 8 shards of 64 videos
    "k400_vit_huge": (512, 2048, 16 * 1e-4),  # 16 shards of 32
    "k400_vit_large": (512, 2048, 3.2e-3),
    "k400_vit_large_fast": (512, 2048, 3.2e-3),
    "mae3d_frames": (32, 32, 1e-3 * 32 / 256),  # 4 GPUs x 8
    "motion_pretrain": (32, 64, 6e-4),
    "small_10k": (32, 256, 3.2e-3 * 256 / 2048),
    "small_500": (16, 256, 3.2e-3 * 256 / 2048),
}
FINETUNING = {
    "finetune_few_shot": (32, 32, 1.2e-3 * 32 / 256),
    "finetune_hmdb51_vit_base": (128, 256, 1e-3),
    "finetune_images": (256, 256, 1.2e-3),
    "finetune_k400_vit_base": (256, 512, 6e-4 * 512 / 32),  # PySlowFast: 6e-4 for 16 videos x 2
    "finetune_k400_vit_huge": (256, 256, 3e-4 * 256 / 16),
    "finetune_k400_vit_large": (256, 512, 2.4e-3 * 2),
    "finetune_motion": (32, 32, 3e-4),
    "finetune_phases": (64, 64, 1e-3 * 64 / 256),
    "finetune_ssv2_vit_base": (256, 512, 4.8e-3 * 2),
    "finetune_ssv2_vit_huge": (256, 256, 4.8e-3),
    "finetune_ssv2_vit_large": (256, 512, 2.4e-3 * 2),
    "finetune_ucf101_vit_base": (128, 256, 1e-3),
}


def test_every_recipe_is_listed_here() -> None:
    assert sorted(PRETRAINING | FINETUNING) == NAMES


@pytest.mark.parametrize("name", PRETRAINING)
def test_pretraining_recipes_have_the_batch_and_the_rate_of_their_source(name: str) -> None:
    config = parse(PretrainConfig, ["--config", name], prog="", description="")
    samples, clips, rate = PRETRAINING[name]
    assert config.train.global_batch == samples
    assert samples * config.data.repeat_aug == clips
    assert peak_lr(config.optim, [samples]) == pytest.approx(rate)
    assert samples % config.train.accumulation == 0


@pytest.mark.parametrize("name", FINETUNING)
def test_finetuning_recipes_have_the_batch_and_the_rate_of_their_source(name: str) -> None:
    config = parse(FinetuneConfig, ["--config", name], prog="", description="")
    samples, clips, rate = FINETUNING[name]
    assert config.train.global_batch == samples
    assert samples * config.data.repeat_aug == clips
    assert peak_lr(config.optim, [samples, config.data.repeat_aug]) == pytest.approx(rate)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_tells_its_source_what_to_expect_and_a_command_that_names_it(name: str) -> None:
    text = (RECIPES / f"{name}.yaml").read_text()
    said = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    recipe = described(name)
    assert recipe.command == ("pretrain" if name in PRETRAINING else "finetune")
    assert recipe.title
    assert recipe.source
    assert re.search(r"measured here|published figure", recipe.expect)
    if named := re.findall(r"--config (?:launch/recipes/)?(\w+)", said):
        assert set(named) == {name}
    else:  # made by make, or by a program
        assert re.search(r"make demo|benchmarks/motion\.py", said)
    assert all(len(line) <= 120 for line in text.splitlines())


def test_settings_that_the_sources_list() -> None:
    seeds = parse(PretrainConfig, ["--config", "hvm_vit_huge14"], prog="", description="")
    own, data, optim = seeds.model, seeds.data, seeds.optim
    assert (own.patch_size, own.embed_dim, own.depth, own.pred_t_dim, own.norm_pix_loss) == (14, 1280, 32, 16, False)
    assert (data.sampling_rate, data.repeat_aug, data.windows, optim.clip_grad) == (8, 16, "shared", 0.1)
    assert optim.lr == optim.min_lr == 1e-4
    frames = parse(PretrainConfig, ["--config", "mae3d_frames"], prog="", description="")
    own, data, optim = frames.model, frames.data, frames.optim
    assert (own.embed_dim, own.depth, own.decoder_depth, own.decoder_num_heads) == (768, 12, 4, 16)
    assert (own.decoder_cls, own.decoder_sep_pos_embed, own.pred_t_dim, own.norm_pix_loss) == (
        "encoder",
        True,
        16,
        False,
    )
    assert (data.sampling, data.num_segments, data.frames_per_segment, data.area) == ("segments", 4, 4, (0.2, 1.0))
    assert (frames.train.epochs, optim.warmup_epochs, optim.min_lr, optim.clip_grad) == (400, 40, 0, None)
    few = parse(FinetuneConfig, ["--config", "finetune_few_shot"], prog="", description="")
    assert (few.model.pooling, few.model.dropout, few.model.drop_path) == ("cls", 0.3, 0.1)
    assert (few.optim.weight_decay, few.optim.layer_decay, few.optim.clip_grad) == (1e-4, 0.8, 5)
    assert (few.data.sampling_rate, few.train.accumulation, few.mix.mixes) == (8, 2, False)
    for name, depth, epochs in (("k400_vit_base", 12, 200), ("k400_vit_huge", 32, 400)):
        config = parse(PretrainConfig, ["--config", name], prog="", description="")
        own = config.model
        assert (own.patch_size, own.depth, own.decoder_num_heads, own.decoder_cls) == (16, depth, 8, "encoder")
        assert (own.decoder_sep_pos_embed, own.target_rule, own.num_kept) == (False, "stride", 156)
        assert (config.train.epochs, config.optim.warmup_epochs) == (epochs, 60)
        shards = peak_lr(config.optim, [512]) / 1e-4
        assert config.optim.min_lr == pytest.approx(shards * 1e-6)


def begun(world: World, shards: Path, folder: Path) -> list[bool]:
    """Train a step by each of five recipes, with a small model: all others begin with the first's."""
    common = ["--data.shards", str(shards), "--model.img_size", "32", "--device", "cpu", "--train.steps", "1"]
    common += ["--train.global_batch", "4", "--train.precision", "fp32", "--data.short", "loop"]
    sizes = [("embed_dim", 24), ("depth", 2), ("num_heads", 2), ("decoder_embed_dim", 24), ("decoder_num_heads", 2)]
    small = [word for name, value in sizes for word in (f"--model.{name}", str(value))]
    small += ["--optim.warmup_epochs", "0", "--run.dir", str(folder / "run")]
    first = parse(PretrainConfig, ["--config", "mae3d_frames", *common, *small], prog="", description="")
    results = [pretrain(first, corpus_of(first.data), world)]
    for name in ("finetune_few_shot", "finetune_images", "finetune_hmdb51_vit_base", "finetune_phases"):
        more = ["--config", name, "--init", str(folder / "run"), "--val.every", "null", "--run.dir", str(folder / name)]
        config = parse(FinetuneConfig, [*more, *common], prog="", description="")
        results.append(finetune(config, corpus_of(config.data), world))
    return results


@pytest.mark.slow
def test_recipes_of_the_ancestors_and_of_small_datasets_start(shards: Path, tmp_path: Path) -> None:
    assert run_ranks(begun, shards, tmp_path, world=1) == [[True] * 5]


def test_the_fast_recipe_differs_as_it_says() -> None:
    slow, fast = (yaml.safe_load((Path(RECIPES) / f"k400_vit_large{end}.yaml").read_text()) for end in ("", "_fast"))
    assert fast["data"].pop("windows") == "shared"
    assert slow["data"].pop("windows") == "own"
    assert slow == fast
