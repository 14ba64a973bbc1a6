"""Models by a name on the Hugging Face Hub, by the real client against a double of its server."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

import mae3d
from launch.common.clip_options import agreed_model_file
from mae3d.model.config import MAEConfig
from mae3d.model.mae import MAE
from mae3d.weights.convert import to_foreign
from mae3d.weights.files import find_model_file, open_encoder
from mae3d.weights.hub import HubModel, hub_model
from mae3d.weights.push import push_folder
from tests.support.hub_server import READER, Hub

# httpx's, of the way in which huggingface_hub uploads to Git LFS
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

CONFIG = MAEConfig(
    preset="mae_vit_tiny_patch16", img_size=32, num_frames=4, embed_dim=48, depth=1, decoder_embed_dim=24,
    decoder_depth=1, mask_ratio=0.5, std=0.3,
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> MAE:
    return MAE(CONFIG).eval()


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("org/name", HubModel("org/name")),
        ("org/name@v1.2", HubModel("org/name", "v1.2")),
        ("hf://runs/a@refs/pr/1", HubModel("runs/a", "refs/pr/1")),
        ("runs/a", None),  # a path by its first part, which need not exist
        ("work/a", None),  # a path, because its first part is a folder here
        ("here/model", None),  # a path that exists
        (Path("org/name"), None),
        ("org/name.pth", None),
        ("name", None),
        ("./org/name", None),
        ("/org/name", None),
        ("a/b/c", None),
        ("s3://bucket/model", None),
        ("../name", None),
    ],
)
def test_a_text_is_a_path_or_a_model_of_the_hub(
    text: str | Path, meant: HubModel | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "work").mkdir()
    (tmp_path / "here" / "model").mkdir(parents=True)
    assert hub_model(text) == meant


def test_a_misspelt_path_is_not_looked_up(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for text in ("runs/b", "mine/b", str(tmp_path / "b")):
        with pytest.raises(ValueError, match=f"{text}: no such file"):
            mae3d.load_model(text)
    with pytest.raises(ValueError, match="hf://runs/b"):
        mae3d.load_model("runs/b")
    with pytest.raises(ValueError, match="hf://nobody: no name"):
        mae3d.load_model("hf://nobody")
    assert hub.log == []


def test_what_is_pushed_is_what_is_loaded(hub: Hub, model: MAE, monkeypatch: pytest.MonkeyPatch) -> None:
    url = mae3d.push_to_hub(model, "org/name", licence="MIT")
    assert url.startswith(f"{hub.endpoint}/org/name/commit/")
    ((_, files),) = [(oid, files) for oid, files in hub.repos["org/name"].commits.items() if files]  # one commit
    assert {name: is_lfs for name, (_, is_lfs) in files.items()} == {
        "model.safetensors": True,
        "config.json": False,
        "README.md": False,
    }
    assert files["README.md"][0].startswith(b"---\nlibrary_name: mae3d\n")
    assert b"\nlicense: mit\n" in files["README.md"][0]
    opened = mae3d.load_model("org/name")
    assert same(opened, model)
    assert opened.config == model.config
    noise = mae3d.mask_noise(seed=0, epoch=0, positions=[0], views=1, tokens=CONFIG.num_tokens)
    clip = torch.randint(0, 256, (1, 4, 32, 32, 3), dtype=torch.uint8)
    assert torch.equal(opened(clip, noise).pred, model(clip, noise).pred)
    assert same(mae3d.open_encoder("hf://org/name"), model.encoder)
    before = len(hub.log)
    file = find_model_file("org/name")
    assert not [line for line in hub.log[before:] if "resolve" in line or "store" in line]  # nothing is fetched again
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find_model_file("org/name") == file
    assert len(hub.log) == before + 1


def test_weights_in_several_files_are_fetched_whole(hub: Hub, model: MAE, tmp_path: Path) -> None:
    state = {
        name: tensor.contiguous() for name, tensor in to_foreign(model.state_dict(), CONFIG, format="mae_st").items()
    }
    places = {name: f"model-{number % 2}.safetensors" for number, name in enumerate(sorted(state))}
    for file in set(places.values()):
        save_file({name: state[name] for name in places if places[name] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    push_folder(tmp_path, "org/parts", private=False, revision="", message="parts")
    assert same(mae3d.load_model("org/parts", config=CONFIG), model)


def test_revisions_are_kept_apart(hub: Hub, model: MAE) -> None:
    mae3d.push_to_hub(model, "org/name")
    other = MAE(CONFIG)
    first = hub.repos["org/name"].branches["main"]
    mae3d.push_to_hub(other, "org/name", revision="second")
    assert hub.repos["org/name"].branches["main"] == first
    assert same(mae3d.load_model("org/name@second"), other)
    assert same(mae3d.load_model(f"org/name@{first}"), model)
    with pytest.raises(ValueError, match=r"org/name@third: .*no such branch"):
        mae3d.load_model("org/name@third")


def test_a_private_model_needs_a_token(hub: Hub, model: MAE, monkeypatch: pytest.MonkeyPatch) -> None:
    mae3d.push_to_hub(model, "org/secret", private=True)
    assert hub.private == {"org/secret"}
    monkeypatch.setenv("HF_TOKEN", READER)
    for text in ("org/secret", "org/absent"):
        with pytest.raises(ValueError, match=rf"{text}: .*no such model, or it is private.*HF_TOKEN"):
            mae3d.load_model(text)
    with pytest.raises(ValueError, match=r"org/new: .*refuses the token \(status 403\)"):
        mae3d.push_to_hub(model, "org/new")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    with pytest.raises(ValueError, match=r"org/secret: .*log in"):
        mae3d.load_model("org/secret")
    with pytest.raises(ValueError, match="log in"):
        mae3d.push_to_hub(model, "org/new")
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")
    with pytest.raises(ValueError, match=r"org/secret: .*refuses the token.*401"):
        mae3d.load_model("org/secret")


def test_nothing_is_made_public_by_mistake(hub: Hub, model: MAE) -> None:
    hub.add("org/open")
    with pytest.raises(ValueError, match="org/open exists and is public"):
        mae3d.push_to_hub(model, "org/open", private=True)
    assert not any("/commit/" in line or "/store/" in line for line in hub.log)


@pytest.mark.parametrize("name", ["a/b/c", "org/na me", "org/..", "-a/b", "org/na--me", ""])
def test_a_name_that_the_hub_does_not_take_is_refused_first(hub: Hub, model: MAE, name: str) -> None:
    with pytest.raises(ValueError, match="no name of a repository"):
        mae3d.push_to_hub(model, name)
    assert hub.log == []


def test_a_hub_that_cannot_be_reached(hub: Hub, model: MAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/name")
    hub.failing = "/api/models"
    with pytest.raises(OSError, match=r"org/name: .*cannot be reached"):
        mae3d.load_model("org/name")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(OSError, match=r"org/name: http://127\.0\.0\.1:1 cannot be reached .*hub-cache has not got it"):
        mae3d.load_model("org/name")
    with pytest.raises(OSError, match=r"org/name: .*cannot be reached"):
        push_folder(tmp_path, "org/name")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"org/name: the cache .* HF_HUB_OFFLINE"):
        mae3d.load_model("org/name")
    with pytest.raises(OSError, match=r"org/name: cannot be written, HF_HUB_OFFLINE"):
        push_folder(tmp_path, "org/name")


def test_other_models_are_named_for_what_they_are(hub: Hub, model: MAE, tmp_path: Path) -> None:
    bert = b'{"model_type": "bert"}'
    hub.add("org/sharded", config__json=bert, README__md=b"#")
    with pytest.raises(ValueError, match=r"org/sharded: holds no model .*model\.safetensors.*'bert'"):
        mae3d.load_model("org/sharded")
    from safetensors.torch import save

    hub.add("org/bert", config__json=bert, model__safetensors=save({"embeddings.weight": torch.zeros(2, 2)}))
    with pytest.raises(ValueError, match=r"embeddings\.weight.*'bert'"):
        mae3d.load_model("org/bert")
    state = to_foreign(model.state_dict(), model.config, format="mae_st")
    torch.save({"model": state, "args": {"decoder_num_heads": 3, "num_heads": 3}}, tmp_path / "foreign.pth")
    hub.add("org/foreign", pytorch_model__bin=(tmp_path / "foreign.pth").read_bytes())
    assert torch.equal(open_encoder("org/foreign").norm.weight, model.encoder.norm.weight)


def test_all_ranks_read_the_commit_that_rank_0_has_fetched(
    hub: Hub, model: MAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second rank's machine has a cache of its own, and the repository goes on in between."""
    mae3d.push_to_hub(model, "org/name")

    class SecondRank:
        def on_first(self, call: Callable[[], Path]) -> Path:
            with monkeypatch.context() as on_rank_0:
                on_rank_0.setattr(constants, "HF_HUB_CACHE", f"{constants.HF_HUB_CACHE}-of-rank-0")
                fetched = call()
            mae3d.push_to_hub(MAE(CONFIG), "org/name")
            return Path(str(fetched).replace("-of-rank-0", "-unreachable"))

    file = agreed_model_file("org/name", SecondRank())  # type: ignore[arg-type]
    assert file.is_relative_to(constants.HF_HUB_CACHE)
    assert same(mae3d.load_model(file), model)
