"""Names of tensors lose what trainers put around a model's own.

names ─► names of the model
"""

import re
from collections.abc import Callable

from torch import Tensor

from mae3d.weights.formats import ConvertError, State

# Parts anywhere in a name, because single modules are wrapped, too, by DistributedDataParallel, torch.compile, FSDP and
# checkpointing of activations.
_INSIDE = re.compile(r"(?<![^.])(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Parts before a model's own names, as Lightning, DeepSpeed and classes of trainers make them.
_WRAPPERS = {"_forward_module", "model", "net", "backbone", "encoder", "target_encoder", "student", "teacher"}
_FIRST_LAYER = re.compile(r"(|.*\.)patch_embed\.proj\.weight")  # of every format's encoder, under all of its prefixes


def unwrapped(foreign: State) -> dict[str, Tensor]:
    """Take the prefixes of trainers off, which the encoder's first layer shows, and the counter of an averaged model.

    Raises:
        ConvertError: There are several encoders, as of a student and its teacher, or two names become one.
    """
    averaged = {name: tensor for name, tensor in foreign.items() if name != "n_averaged"}
    state = renamed(averaged, lambda name: _INSIDE.sub("", name))
    prefixes = [match[1] for match in map(_FIRST_LAYER.fullmatch, state) if match]
    if len(prefixes) > 1:
        counts = (f"{prefix or 'no prefix'} ({_count(state, prefix)} tensors)" for prefix in sorted(prefixes))
        raise ConvertError(f"holds several models, under {', '.join(counts)}: save the one that is meant alone")
    for part in "".join(prefixes).split(".")[:-1]:
        if part not in _WRAPPERS:
            break
        state = strip_prefix(state, f"{part}.")
    return state


def strip_prefix(state: State, prefix: str) -> dict[str, Tensor]:
    """Take a prefix off every name that has it."""
    return renamed(state, lambda name: name.removeprefix(prefix))


def renamed(state: State, rename: Callable[[str], str]) -> dict[str, Tensor]:
    """Rename tensors; two that come to the same name are an error, because one would be lost."""
    names: dict[str, str] = {}
    for name in state:
        if (first := names.setdefault(rename(name), name)) != name:
            raise ConvertError(f"{first} and {name} are the same tensor by name: leave one out")
    return {new: state[old] for new, old in names.items()}


def _count(state: State, prefix: str) -> int:
    return sum(name.startswith(prefix) for name in state)
