"""`data.decode` and the run so far ─► the decoder that all ranks use: the GPU's only if a child has tried it.

decode, note = choose_decode("auto", stored=None, world=world, layouts={"jpeg"})     # ("mixed", ""), or ("cpu", why)

DALI's mixed decoder can crash the process (NVIDIA/nvImageCodec#55), so each rank tries it in a child first. It decodes
JPEGs, and groups of H.264 if that is requested: no GPU has shown yet that the latter works.
"""

import sys
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Literal, cast

from launch.common.machine_checks import dali_fault

if TYPE_CHECKING:
    from mae3d.distributed import World

Decode = Literal["cpu", "mixed"]


def choose_decode(
    requested: str,
    *,
    stored: str | None,
    world: "World",
    layouts: Collection[str],
    fault_of: Callable[[str, int, str], str] = dali_fault,
) -> tuple[Decode, str]:
    """Choose the same decoder on all ranks, which all call it; nothing is tried on the CPU.

    A run keeps the decoder that it began with: the two interpolate a JPEG's colours in two ways (the argument
    jpeg_fancy_upsampling of DALI's decoder), which shows at edges. Another one is used only if it is requested, and the
    note says so. `auto` takes the GPU's for JPEGs only.

    Args:
        requested: `data.decode`.
        stored: the decoder of the run's last start; None for a new run.
        world: all ranks.
        layouts: of the datasets that are read.
        fault_of: tries DALI on a device, and on a layout, in a child and returns the error, "" if there is none.

    Returns:
        The choice, and a note for the user; "" if there is none.

    Raises:
        ValueError: the mixed decoder is requested, or the run began with it, and it cannot be used.
    """
    before = cast(Decode, stored) if stored in ("cpu", "mixed") else None
    decode = requested if requested != "auto" else before or "auto"
    if world.device.type != "cuda":
        if requested == "mixed":
            raise ValueError("data.decode=mixed decodes on a GPU, and the device is the CPU: give --data.decode auto")
        return "cpu", _changed(before, "cpu")
    if set(layouts) not in ({"jpeg"}, {"video"}):  # a GPU decodes none of them, and a stored choice had no effect
        return "cpu", "" if requested != "mixed" else _ALONE
    (layout,) = layouts
    if decode == "cpu" or (decode == "auto" and layout == "video"):
        return "cpu", _changed(before, "cpu")
    fault = fault_of("mixed", world.device.index or 0, layout)
    if fault:
        print(f"rank {world.ranks.rank}: the mixed decoder fails: {fault}", file=sys.stderr, flush=True)
    if not world.any(bool(fault)):
        return "mixed", _changed(before, "mixed")
    reason = fault or "it fails on another rank, whose output says why"
    if decode == "mixed":
        why = "is requested" if requested == "mixed" else "is the decoder that this run began with"
        raise ValueError(
            f"data.decode=mixed {why}, but cannot be used: {reason}. `mae3d doctor` says more; "
            "--data.decode cpu decodes on the CPU (colours at edges come out otherwise)"
        )
    return "cpu", f"on the CPU, resized on the GPU: the mixed decoder cannot be used ({reason})"


_ALONE = (
    "on the CPU, resized on the GPU: data.decode=mixed decodes datasets of layout jpeg alone, or of layout video alone"
)


def _changed(before: Decode | None, now: Decode) -> str:
    if before is None or before == now:
        return ""
    return f"{now}, the run began with {before}: colours at edges come out otherwise from here on"
