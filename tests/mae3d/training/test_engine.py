"""DeepSpeed against plain torch, and its slices through a checkpoint into every other layout."""

import math
from pathlib import Path

import pytest
import torch

from mae3d.checkpoints import format as checkpoint
from tests.support.ranks import run_ranks
from tests.support.trainings import MODEL, ONE_BUCKET, SMALL_PARTS, Case, Outcome, plain_training, train_all

pytestmark = pytest.mark.slow

HALF, END = 3, 6
FIRST, SECOND, SKIPPING = range(HALF), range(HALF, END), range(4)
TO_BITS = {"fp32": 1e-5, "autocast": 2e-3, "bf16": 3e-3}  # absolute, of losses around 1


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def on_two(runs: Path) -> dict[str, Outcome]:
    """Two processes, from the start; checkpoints in the middle."""
    cases = {"1": Case(1), "1 first": Case(1, steps=FIRST, save=runs / "1"), "2 in parts": Case(2, accumulation=2)}
    cases["1 in one bucket"] = Case(1, deepspeed=ONE_BUCKET, steps=FIRST)
    # From stage 3 on DeepSpeed multiplies in another way in the whole process.
    cases |= {"3": Case(3), "3 first": Case(3, steps=FIRST, save=runs / "3")}
    cases["3 in parts"] = Case(3, accumulation=2, deepspeed=SMALL_PARTS, steps=FIRST, save=runs / "3 in parts")
    cases["3 in one bucket"] = Case(3, deepspeed=ONE_BUCKET, steps=FIRST)
    cases["3 bf16"] = Case(3, precision="bf16")
    cases["3 bf16 first"] = Case(3, precision="bf16", steps=FIRST, save=runs / "3 bf16")
    cases |= {f"{stage} poisoned": Case(stage, poisoned=2, steps=SKIPPING) for stage in (0, 1, 2, 3)}
    cases["2 bf16 poisoned"] = Case(2, precision="bf16", poisoned=2, steps=SKIPPING)
    cases["1 autocast"] = Case(1, precision="autocast")
    cases["3 autocast poisoned"] = Case(3, precision="autocast", poisoned=2, steps=SKIPPING)
    return run_ranks(train_all, cases, world=2)[0]


@pytest.fixture(scope="module")
def on_one(runs: Path, on_two: dict[str, Outcome]) -> dict[str, Outcome]:
    """One process, most of it from what two have saved."""
    saved = {name: checkpoint.step_folder(runs / name, HALF) for name in ("1", "3", "3 in parts", "3 bf16")}
    cases = {"1 first": Case(1, steps=FIRST, save=runs / "1 of one")}
    cases |= {f"1 -> {stage}": Case(stage, steps=SECOND, load=saved["1"]) for stage in (0, 1, 2, 3)}
    cases |= {f"3 -> {stage}": Case(stage, steps=SECOND, load=saved["3"]) for stage in (0, 1, 3)}
    cases["3 in parts -> 2"] = Case(2, steps=SECOND, load=saved["3 in parts"])
    cases["3 -> 3 in parts"] = Case(3, steps=SECOND, load=saved["3"], deepspeed=SMALL_PARTS)
    cases["1 bf16"] = Case(1, precision="bf16")
    cases["1 bf16 first"] = Case(1, precision="bf16", steps=FIRST, save=runs / "bf16")
    cases["1 bf16 second"] = Case(
        1, precision="bf16", steps=SECOND, load=checkpoint.step_folder(runs / "bf16", HALF)
    )  # fmt: skip
    cases["3 bf16 -> 2 bf16"] = Case(2, precision="bf16", steps=SECOND, load=saved["3 bf16"])
    return run_ranks(train_all, cases, world=1)[0]


@pytest.fixture(scope="module")
def on_two_again(runs: Path, on_one: dict[str, Outcome]) -> dict[str, Outcome]:
    """Two processes, from checkpoints of one and of two."""
    saved = {name: checkpoint.step_folder(runs / name, HALF) for name in ("1", "1 of one", "3", "3 bf16")}
    cases = {
        "1 second": Case(1, steps=SECOND, load=saved["1"]),
        "3 second": Case(3, steps=SECOND, load=saved["3"]),
        "3 bf16 second": Case(3, precision="bf16", steps=SECOND, load=saved["3 bf16"]),
        "one -> 1": Case(1, steps=SECOND, load=saved["1 of one"]),
        "one -> 3": Case(3, steps=SECOND, load=saved["1 of one"]),
        "3 -> 2": Case(2, steps=SECOND, load=saved["3"]),
    }
    return run_ranks(train_all, cases, world=2)[0]


@pytest.fixture(scope="module")
def plain() -> Outcome:
    return plain_training(steps=END)


def test_fault_33_stages_and_accumulation_equal_torch(on_two: dict[str, Outcome], plain: Outcome) -> None:
    assert plain.losses[-1] < plain.losses[0]  # the steps did something
    assert max(plain.norms) > 0.5  # and clipping too
    for name in ("1", "2 in parts", "3"):
        assert on_two[name].losses == pytest.approx(plain.losses, abs=1e-5), name
        assert on_two[name].norms == pytest.approx(plain.norms, rel=1e-4), name
        assert on_two[name].evaluated == pytest.approx(plain.evaluated, abs=1e-5), name
        assert on_two[name].names == plain.names
        assert on_two[name].optimizer_step == END
    for name in ("1 autocast", "3 bf16"):
        assert on_two[name].losses == pytest.approx(plain.losses, abs=2e-2), name
        assert on_two[name].evaluated == pytest.approx(plain.evaluated, abs=2e-2), name


def test_losses_are_those_of_deepspeeds_one_bucket_to_the_last_bit(on_two: dict[str, Outcome]) -> None:
    for name in ("1", "3"):
        one, many = on_two[f"{name} in one bucket"], on_two[name]
        assert (one.losses, one.norms) == (many.losses[:HALF], many.norms[:HALF]), name


def test_validation_has_the_precision_of_training_to_the_last_bit(
    on_two: dict[str, Outcome], on_one: dict[str, Outcome]
) -> None:
    outcomes = on_two | on_one
    for name, outcome in outcomes.items():
        assert outcome.evaluated == outcome.evaluated_in_training, name
    exact, autocast, bf16 = (outcomes[name].evaluated for name in ("1", "1 autocast", "3 bf16"))
    assert len({exact, autocast, bf16}) == 3


def test_fault_33_a_run_goes_on_in_every_other_layout(
    on_two: dict[str, Outcome], on_one: dict[str, Outcome], on_two_again: dict[str, Outcome], plain: Outcome
) -> None:
    # To the last bit: same world, same sums.
    assert on_two["1 first"].losses + on_two_again["1 second"].losses == on_two["1"].losses
    assert on_two["3 first"].losses + on_two_again["3 second"].losses == on_two["3"].losses
    assert on_one["1 first"].losses == pytest.approx(plain.losses[:HALF], abs=1e-5)
    moved = [name for name in on_one if "->" in name and "bf16" not in name]
    assert len(moved) == 9
    for name in moved:
        assert on_one[name].losses == pytest.approx(plain.losses[HALF:], abs=1e-5), name
        assert on_one[name].evaluated == pytest.approx(plain.evaluated, abs=1e-5), name
        assert on_one[name].optimizer_step == END
    for name in ("one -> 1", "one -> 3", "3 -> 2"):
        assert on_two_again[name].losses == pytest.approx(plain.losses[HALF:], abs=1e-5), name


def test_bf16_keeps_fp32_masters_and_resumes(
    runs: Path, on_two: dict[str, Outcome], on_one: dict[str, Outcome], on_two_again: dict[str, Outcome], plain: Outcome
) -> None:
    assert on_one["1 bf16"].losses == pytest.approx(plain.losses, abs=2e-2)
    assert on_one["1 bf16 second"].losses == pytest.approx(on_one["1 bf16"].losses[HALF:], abs=1e-3)
    uncut = on_two["3 bf16"].losses
    assert on_two_again["3 bf16 second"].losses == pytest.approx(uncut[HALF:], abs=1e-3)
    assert on_one["3 bf16 -> 2 bf16"].losses == pytest.approx(uncut[HALF:], abs=5e-3)
    for run in ("bf16", "3 bf16"):
        reader = checkpoint.SliceReader(checkpoint.step_folder(runs / run, HALF))
        master = reader.whole("encoder.blocks.0.attn.qkv.weight", "master")
        assert not torch.equal(master, master.bfloat16().float())


@pytest.mark.parametrize("name", [f"{how} poisoned" for how in ("0", "1", "2", "3", "2 bf16", "3 autocast")])
def test_fault_26_a_gradient_that_is_not_finite_on_one_process_skips_the_step_on_all(
    on_two: dict[str, Outcome], name: str
) -> None:
    outcome, expected = on_two[name], plain_training(steps=len(SKIPPING), without=2)
    assert outcome.skipped == 1
    assert outcome.optimizer_step == len(SKIPPING) - 1
    assert math.isnan(outcome.losses[2])
    assert not math.isfinite(outcome.norms[2])
    exact = "bf16" not in name and "autocast" not in name
    for step in set(SKIPPING) - {2}:
        assert outcome.losses[step] == pytest.approx(expected.losses[step], abs=1e-5 if exact else 2e-2)


def test_a_checkpoint_holds_each_element_once(runs: Path, on_two: dict[str, Outcome]) -> None:
    from safetensors.torch import load_file

    from mae3d.model.mae import MAE

    for name in ("1", "3", "3 in parts"):
        held: dict[str, int] = {}
        for path in checkpoint.step_folder(runs / name, HALF).glob("rank-*.safetensors"):
            for key, tensor in load_file(path).items():
                kind = key.partition("|")[0]
                held[kind] = held.get(kind, 0) + tensor.numel()
        whole = sum(parameter.numel() for parameter in MAE(MODEL).parameters())
        assert held == dict.fromkeys(("master", "exp_avg", "exp_avg_sq"), whole), name
