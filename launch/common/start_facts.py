"""A config and the installed code ─► what all processes of one start have in common, by name.

start_facts(config)    # {"folder": "/data/out/run", "code": "mae3d 0.2.0, sources 3f2a…", "optim.lr": 1e-3, …}

`World` compares it before the first step. Settings that name something of one machine are left out (mae3d.io.resume).
"""

import os
import platform
from dataclasses import asdict
from typing import Any

from mae3d.io.hooks import codes_of
from mae3d.io.resume import dotted, local_settings
from mae3d.io.versions import code_version, version_of

_LIBRARIES = ("torch", "torchvision", "numpy", "deepspeed", "nvidia-dali-cuda120")
_ARITHMETIC = (  # variables with which the same program computes other numbers
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "CUBLAS_WORKSPACE_CONFIG",
    "MKL_CBWR",
    "ONEDNN_DEFAULT_FPMATH_MODE",
)


def start_facts(config: Any) -> dict[str, Any]:
    """Return the folder that is written, the versions, those of hooks too, and the complete settings.

    Args:
        config: a command's, a dataclass of dataclasses; `run.dir` or `out` is the folder.
    """
    settings = dotted(asdict(config))
    folder = settings.get("run.dir") or settings.get("out") or "."
    local = local_settings(config)
    return {
        "folder": os.path.abspath(folder),  # noqa: PTH100 - links differ between machines, names should not
        "code": code_version(),
        "python": platform.python_version(),
        **{name: version_of(name) for name in _LIBRARIES},
        **{name: os.environ.get(name, "") for name in _ARITHMETIC},
        **{f"code of {text}": code for text, code in codes_of(config).items()},
        **{name: value for name, value in settings.items() if name not in local},
    }
