"""Set up the tests of training; torch is imported later, when tests/conftest.py has set the number of its threads."""

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def world() -> Iterator[Any]:
    """Yield a world of this process only, joined."""
    import torch.distributed as dist

    from tests.support.savings import alone

    yield alone()
    dist.destroy_process_group()
