"""Names of tensors lose what trainers put around them, after one of the models in a file is chosen.

names ─► names of the model

A model is known by its encoder's first layer, so that any prefix will do: Lightning's `model.`, mmengine's `backbone.`,
DINO's `teacher.backbone.`. Of several models one is taken by rules that `preferred` has, which is logged, or by its
name behind the file's: `FILE#teacher`.
"""

import logging
import re
from collections.abc import Callable, Iterable

from torch import Tensor

from mae3d.weights.formats import ConvertError, State

# Parts anywhere in a name, because single modules are wrapped, too, by DistributedDataParallel, torch.compile, FSDP and
# checkpointing of activations.
_INSIDE = re.compile(r"(?<![^.])(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")
# An encoder's first layer in the names of every project, behind a prefix.
FIRST_LAYER = re.compile(
    r"(|.*?\.)(patch_embed\.proj|patch_embed\.projection|embeddings\.patch_embeddings\.projection|"
    r"encoder\.embeddings\.patch_embeddings\.proj)\.weight"
)
# Beginnings of names that stay though they lie beside the encoder's module: decoders, last norms, heads for classes.
_BESIDE = (
    *("decoder", "dec_pos_embed_", "mask_token", "pred_head.", "encoder_to_decoder.", "head.", "norm.", "fc_norm."),
    *("classifier.", "layernorm."),
)
_COUNTERS = ("n_averaged", "steps", "num_updates")  # of averaged models, which are no weights

# Keys and prefixes of the models that methods train by themselves, and of the average that they publish.
_TEACHERS = ("teacher", "ema_encoder", "target_encoder", "momentum_encoder")
_STUDENTS = ("student", "encoder", "online_encoder", "context_encoder", "base_encoder")
TRAINED = ("model", "model_state", "module", "state_dict", "model_state_dict")  # keys of the weights that are trained
_AVERAGE = re.compile(r"(^|[._])(ema|swa|averaged?|shadow)([._]|$)", flags=re.IGNORECASE)

logger = logging.getLogger(__name__)


def unwrapped(foreign: State) -> dict[str, Tensor]:
    """Take the prefixes of trainers off, which the encoder's first layer shows, and the counter of an averaged model.

    Raises:
        ConvertError: There are several encoders, none of which is the usual one, or two names become one.
    """
    kept = {name: tensor for name, tensor in foreign.items() if name not in _COUNTERS}
    state = renamed(kept, inner_name)
    prefixes = [match[1] for match in map(FIRST_LAYER.fullmatch, state) if match]
    if not prefixes:
        return state
    prefix = prefixes[0]
    if len(prefixes) > 1:
        counts = {part: f"{part or 'no prefix'} ({_count(state, part)} tensors)" for part in sorted(prefixes)}
        prefix, why = preferred(prefixes)
        if not why:
            raise ConvertError(
                f"holds several models, under {', '.join(counts.values())}: name the one that is meant, as in "
                f"FILE#{max(prefixes)[:-1]}"
            )
        shown = counts.pop(prefix)
        logger.warning("several models: %s is taken, %s; left out: %s", shown, why, ", ".join(counts.values()))
        state = {name: tensor for name, tensor in state.items() if _owner(name, prefixes) in (prefix, None)}
    return _inside(state, prefix)


def _owner(name: str, prefixes: list[str]) -> str | None:
    """Return the longest of the prefixes that a name has, None if it has none."""
    return max((prefix for prefix in prefixes if name.startswith(prefix)), key=len, default=None)


def _inside(state: State, prefix: str) -> dict[str, Tensor]:
    """Return the tensors under a prefix, without it, and those beside it that may belong to the model."""
    others = [name for name in state if not name.startswith((prefix, *_BESIDE))]
    if others:
        shown = ", ".join(sorted(others)[:3]) + (", ..." if len(others) > 3 else "")
        logger.warning("%d tensors outside %s are left out: %s", len(others), prefix.rstrip("."), shown)
    return strip_prefix({name: tensor for name, tensor in state.items() if name not in others}, prefix)


def inner_name(name: str) -> str:
    """Return a tensor's name without the parts that wrappers of modules put into it."""
    return _INSIDE.sub("", name)


def preferred(names: Iterable[str]) -> tuple[str, str]:
    """Choose one of several models by its key or prefix.

    Returns:
        The name, and the reason in words; ("", "") if no rule chooses one.
    """
    words = {name: [word for word in name.split(".") if word] for name in names}
    for teacher in _TEACHERS:
        named = [name for name, parts in words.items() if teacher in parts]
        if len(named) == 1 and all(set(parts) & {*_TEACHERS, *_STUDENTS} for parts in words.values()):
            return named[0], "the average that such methods publish"
    for key in TRAINED:
        named = [name for name, parts in words.items() if parts[:1] == [key]]
        if named:
            return (named[0], "the weights that were trained") if len(named) == 1 else ("", "")
    named = [name for name in words if not _AVERAGE.search(name)]
    return (named[0], "which is no average") if len(named) == 1 else ("", "")


def under(state: State, key: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a key, without it.

    Raises:
        ConvertError: There are none; the message has the beginnings that there are.
    """
    inner = {inner_name(name): tensor for name, tensor in state.items()}
    chosen = {name.removeprefix(f"{key}."): tensor for name, tensor in inner.items() if name.startswith(f"{key}.")}
    if not chosen:
        first = sorted({name.partition(".")[0] for name in inner})
        raise ConvertError(f"has no tensors under #{key}; names begin with {', '.join(first[:12])}")
    return chosen


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
