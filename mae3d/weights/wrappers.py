"""Names of tensors lose what trainers put around a model's own.

names ─► names of the model
"""

from collections.abc import Callable

from torch import Tensor

from mae3d.weights.formats import ConvertError, State

# Prefixes of all names that trainers make: DistributedDataParallel, torch.compile, Lightning, classes of their own.
_WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "backbone.", "encoder.", "target_encoder.", "_forward_module.")


def strip_prefix(state: State, prefix: str) -> dict[str, Tensor]:
    """Take a wrapper's prefix (DistributedDataParallel's `module.`) off every key that has it."""
    return renamed(state, lambda name: name.removeprefix(prefix))


def unwrapped(foreign: State) -> dict[str, Tensor]:
    """Take the prefixes of trainers off, as far as all keys have them, and the counter of an averaged model."""
    state = strip_prefix({name: tensor for name, tensor in foreign.items() if name != "n_averaged"}, "module.")
    while prefix := next(
        (prefix for prefix in _WRAPPERS if state and all(name.startswith(prefix) for name in state)), ""
    ):
        state = strip_prefix(state, prefix)
    return state


def renamed(state: State, rename: Callable[[str], str]) -> dict[str, Tensor]:
    """Rename tensors; two that come to the same name are an error, because one would be lost."""
    names: dict[str, str] = {}
    for name in state:
        if (first := names.setdefault(rename(name), name)) != name:
            raise ConvertError(f"{first} and {name} are the same tensor by name: leave one out")
    return {new: state[old] for new, old in names.items()}
