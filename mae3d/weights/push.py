"""Models and exported folders are uploaded to the Hugging Face Hub as one commit.

model, folder ─► a commit

    url = push_to_hub(model, "org/name", licence="MIT")      # mae3d.load_model("org/name") opens it
    url = push_folder(folder, "org/name", private=True)
"""

import re
import tempfile
from pathlib import Path

from mae3d import __version__
from mae3d.model.classifier import Classifier
from mae3d.model.mae import MAE
from mae3d.weights.card import Clip, describe, write_card
from mae3d.weights.files import MODEL_FILE, save_model
from mae3d.weights.hub import PART, in_one_line


def push_folder(
    folder: Path, repo: str, *, private: bool = False, revision: str = "", message: str = "Upload the model"
) -> str:
    """Upload the files of a folder as one commit; a repository or branch that does not exist is made.

    Args:
        folder: An exported folder.
        repo: `org/name`, or `name` alone for the user whom the token belongs to.
        private: Whether a new repository is readable for its members only. An existing public one is refused then.
        revision: The branch; "" is main.
        message: Of the commit.

    Returns:
        The commit's URL.

    Raises:
        ValueError: The name has another form, there is no token or it may not write, or the repository is public.
        OSError: The Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    check_repo(repo)
    api = HfApi(library_name="mae3d", library_version=__version__)
    with in_one_line(repo, doing="written"):
        repo = api.create_repo(repo, private=private or None, exist_ok=True).repo_id
        if private and not api.model_info(repo).private:
            raise ValueError(f"{repo} exists and is public: make it private in its settings first, or name another")
        if revision:
            api.create_branch(repo, branch=revision, exist_ok=True)
        commit = api.upload_folder(folder_path=folder, repo_id=repo, revision=revision or None, commit_message=message)
    return str(commit.commit_url)


def push_to_hub(
    model: MAE | Classifier,
    repo: str,
    *,
    private: bool = False,
    revision: str = "",
    licence: str = "",
    sampling_rate: float = 4,
    target_fps: float = 30,
) -> str:
    """Upload a model with its config and a card; `load_model` or `load_classifier` opens it by the repository's name.

    Args:
        model: The model.
        repo: As for `push_folder`, like `private` and `revision`.
        private: Whether a new repository is for its members only.
        revision: The branch.
        licence: What the card says of it; "" for nothing.
        sampling_rate: Distance of two frames of its clips at target_fps, for the card.
        target_fps: The frame rate that sampling_rate refers to.

    Returns:
        The commit's URL.

    Raises:
        ValueError: As `push_folder`.
        OSError: As `push_folder`.
    """
    check_repo(repo)
    facts = describe(model, Clip(sampling_rate, target_fps), licence=licence)
    with tempfile.TemporaryDirectory(prefix="mae3d-push-") as aside:
        save_model(model, Path(aside) / MODEL_FILE)
        write_card(facts, Path(aside))
        return push_folder(Path(aside), repo, private=private, revision=revision)


def check_repo(repo: str) -> None:
    """Refuse a text that is no name of a repository; ValueError."""
    if not re.fullmatch(rf"(?:{PART}/)?{PART}", repo, re.ASCII) or "--" in repo or ".." in repo or len(repo) > 96:
        raise ValueError(f"{repo!r} is no name of a repository: give ORG/NAME of letters, digits, '-', '_' and '.'")
