"""`data.decode` and the run so far ─► the decoder that all processes use: the GPU's only where a child has tried it.

decode, note = choose_decode("auto", stored=None, world=world)     # ("mixed", ""), or ("cpu", why)

DALI's mixed decoder can crash the process (NVIDIA/nvImageCodec#55), so it is tried in a child of every process first.
"""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, cast

from launch.common.machine_checks import dali_fault

if TYPE_CHECKING:
    from mae3d.distributed import World

Decode = Literal["cpu", "mixed"]


def choose_decode(
    asked: str, *, stored: str | None, world: "World", fault_of: Callable[[str, int], str] = dali_fault
) -> tuple[Decode, str]:
    """The same choice on every process; to be called by all of them. Nothing is tried on the CPU.

    A run keeps the decoder that it began with: the two differ by a rounding in some pixels. Another one is used only if
    it is asked for, and told.

    Args:
        asked: `data.decode`.
        stored: what the run was last started with; None for a new run.
        world: all processes.
        fault_of: tries DALI on a device in a child and says what went wrong.

    Returns:
        The choice, and a line for the user where there is something to tell.

    Raises:
        ValueError: the mixed decoder was asked for, or the run began with it, and it cannot be used.
    """
    before = cast(Decode, stored) if stored in ("cpu", "mixed") else None
    wanted = asked if asked != "auto" else before or "auto"
    if world.device.type != "cuda":
        if asked == "mixed":
            raise ValueError("data.decode=mixed decodes on a GPU, and the device is the CPU: give --data.decode auto")
        return "cpu", _changed(before, "cpu")
    if wanted == "cpu":
        return "cpu", _changed(before, "cpu")
    fault = fault_of("mixed", world.device.index or 0)
    if fault:
        print(f"process {world.ranks.rank}: the mixed decoder fails: {fault}", file=sys.stderr, flush=True)
    if not world.any(bool(fault)):
        return "mixed", _changed(before, "mixed")
    told = fault or "it fails on another process, see there"
    if wanted == "mixed":
        why = "was asked for" if asked == "mixed" else "is what this run began with"
        raise ValueError(
            f"data.decode=mixed {why}, and cannot be used: {told}. `python -m launch.doctor` says more; "
            "--data.decode cpu decodes on the CPU (some pixels are rounded otherwise)"
        )
    return "cpu", f"on the CPU, resized on the GPU: the mixed decoder cannot be used ({told})"


def _changed(before: Decode | None, now: Decode) -> str:
    if before is None or before == now:
        return ""
    return f"{now}, the run began with {before}: some pixels are rounded otherwise from here on"
