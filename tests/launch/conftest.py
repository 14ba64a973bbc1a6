"""Set up what the tests of finetuning share: weights to start from, and settings."""

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def pretrained(shared: Any) -> Path:
    """Return the file of a random model with the settings tests.support.finetunings.MAE_CONFIG."""
    from tests.support.finetunings import pretrained_model

    return shared("pretrained", pretrained_model)


@pytest.fixture(scope="module")
def base(shards: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the settings of a finetuning on ten samples, without a run folder."""
    from tests.support.finetunings import settings

    return settings(tmp_path_factory.mktemp("names"), shards, pretrained)
