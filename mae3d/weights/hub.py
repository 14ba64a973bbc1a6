"""Models of the Hugging Face Hub are fetched by name into its cache.

org/name[@revision], hf://org/name ─► a folder that holds a model

    model = hub_model("org/name")            # None: the text is a path
    folder = fetch(model)                    # as the Hub's own client caches it; HF_HUB_OFFLINE=1: from the cache alone

huggingface_hub does all that has to do with the network: its HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE hold.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from mae3d import __version__

SCHEME = "hf://"
PART = r"[A-Za-z0-9](?:[\w.-]*\w)?"
_NAME = re.compile(rf"(?P<repo>{PART}/{PART})(?:@(?P<revision>[^\s@]+))?", re.ASCII)
# Folders and endings that people give to models on their disks: a bare text with one of them is a path that is missing.
_FOLDERS = {"checkpoints", "data", "exports", "models", "out", "output", "outputs", "runs", "shards", "weights"}
_ENDINGS = {".bin", ".ckpt", ".json", ".onnx", ".pkl", ".pt", ".pt2", ".pth", ".safetensors", ".tar", ".yaml", ".zip"}

# Files of a repository that are fetched: with the first of these kinds of weights that it has. An index names others.
WEIGHTS = ("model.safetensors", "checkpoint.pth", "pytorch_model.bin")
INDICES = {
    "model.safetensors.index.json": "model-*.safetensors",
    "pytorch_model.bin.index.json": "pytorch_model-*.bin",
}
_BESIDE = ("config.json", "preprocessor_config.json", "video_preprocessor_config.json", "README.md")

_LOG_IN = "log in (hf auth login) or set HF_TOKEN to a token that may"


class HubModel(NamedTuple):
    """A model of the Hub.

    Attributes:
        repo: `org/name`.
        revision: A branch, a tag or a commit; None is the repository's main branch.
    """

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{SCHEME}{self.repo}" + (f"@{self.revision}" if self.revision else "")


def hub_model(text: str | Path) -> HubModel | None:
    """Return the model of the Hub that a text names; None if it is a path.

    `hf://org/name` always names a model of the Hub, a `Path` never does. A bare `org/name` does unless it exists here,
    its first part is a folder here or has a name that people give to folders of models (`runs/a`), or it ends as a
    file of weights does: a misspelt path is never looked up on the network.

    Raises:
        ValueError: A text that begins with hf:// has not the form `hf://org/name[@revision]`.
    """
    if isinstance(text, Path):
        return None
    is_marked = text.startswith(SCHEME)
    match = _NAME.fullmatch(text.removeprefix(SCHEME))
    if is_marked:
        if not match:
            raise ValueError(f"{text}: no name of a model: give {SCHEME}ORG/NAME, with @REVISION if need be")
        return HubModel(match["repo"], match["revision"])
    if not match or Path(text).exists():
        return None
    folder = match["repo"].partition("/")[0]
    if folder.lower() in _FOLDERS or Path(folder).exists() or Path(match["repo"]).suffix.lower() in _ENDINGS:
        return None
    return HubModel(match["repo"], match["revision"])


def remedy_for(text: str | Path) -> str:
    """Return the clause that a missing path may be meant as a model of the Hub; "" if it cannot be one."""
    if isinstance(text, Path) or not _NAME.fullmatch(text):
        return ""
    return f"; a model of the Hugging Face Hub is named {SCHEME}{text}"


def fetch(model: HubModel) -> Path:
    """Return the folder of the Hub's cache that holds the model's files; what is missing there is downloaded.

    Raises:
        ValueError: There is no such repository or revision, it may not be read, or it has no weights.
        OSError: The Hub cannot be reached, or is switched off by HF_HUB_OFFLINE, and the cache has not got the model.
    """
    from huggingface_hub import snapshot_download

    folder = Path()
    with in_one_line(str(model), doing="read"):
        for weights in (*WEIGHTS, *INDICES):
            folder = Path(
                snapshot_download(
                    model.repo,
                    revision=model.revision,
                    allow_patterns=[weights, *_BESIDE, *([INDICES[weights]] if weights in INDICES else [])],
                    library_name="mae3d",
                    library_version=__version__,
                )
            )
            if (folder / weights).is_file():
                return folder
    raise ValueError(
        f"{model}: holds no model that is known here: it has none of {', '.join(WEIGHTS)}{kind_in(folder)}"
    )


def cached_folder(model: HubModel) -> Path | None:
    """Return the folder of the cache that has a model's config.json, without the network; None if it is missing."""
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(model.repo, "config.json", revision=model.revision)
    return Path(file).parent if isinstance(file, str) else None


def kind_in(folder: Path) -> str:
    """Return the clause that config.json of another library has a model of its own kind; "" if it says nothing."""
    import json

    try:
        described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = described.get("model_type")
    except (OSError, ValueError, AttributeError):
        return ""
    return f"; its config.json describes a model of the type {kind!r}" if kind else ""


@contextmanager
def in_one_line(name: str, *, doing: str) -> Iterator[None]:
    """Raise the errors of huggingface_hub as ValueError or OSError of one line, with the remedy."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise ValueError(f"{name}: accept its terms on {_site()} and {_LOG_IN}") from error
    except errors.RepositoryNotFoundError as error:
        raise ValueError(
            f"{name}: {_site()} has no such model, or it is private: check the name, or {_LOG_IN}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{name}: the repository has no such branch, tag or commit") from error
    except errors.LocalEntryNotFoundError as error:
        raise OSError(f"{name}: {_why_absent(error)}") from error
    except errors.OfflineModeIsEnabled as error:
        raise OSError(f"{name}: cannot be {doing}, HF_HUB_OFFLINE switches the network off: unset it") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise ValueError(
                f"{name}: cannot be {doing}, {_site()} refuses the token (status {status}): {_LOG_IN}"
            ) from error
        raise OSError(f"{name}: {_site()} answered {status} ({_first_line(error)}): try again later") from error
    except (errors.HFValidationError, errors.LocalTokenNotFoundError) as error:
        raise ValueError(f"{name}: {_first_line(error)}") from error
    except RuntimeError as error:  # of an upload, around its reason
        raise OSError(f"{name}: {_first_line(error)} ({_first_line(error.__cause__ or error)}): try again") from error
    except errors.HTTPError as error:  # of the HTTP library: no connection, a time-out
        raise OSError(f"{name}: {_site()} cannot be reached ({_first_line(error)})") from error


def _why_absent(error: Exception) -> str:
    """Return why a model is neither in the cache nor could be fetched."""
    from huggingface_hub import constants

    cache = f"the cache {constants.HF_HUB_CACHE} has not got it whole"
    if constants.HF_HUB_OFFLINE:
        return f"{cache}, and HF_HUB_OFFLINE switches the network off: fetch it once with the network on"
    cause = _first_line(error.__cause__ or error)
    return f"{_site()} cannot be reached ({cause}), and {cache}: connect, or set HF_HOME to a cache that has it"


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _site() -> str:
    """Return the address of the Hub, as HF_ENDPOINT sets it."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)
