"""The sections of `benchmarks/gpu.py`: what each answers, in which time, and what it needs. Standard library only."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

TORCH = ("torch", "numpy", "PIL", "pyarrow", "safetensors", "tqdm")
DALI = ("nvidia.dali", "nvidia.nvimgcodec", "astunparse", "gast", "six", "packaging")
LOADER = (*TORCH, *DALI, "av", "torchvision")
ENGINE = (*TORCH, "deepspeed", "hjson", "cpuinfo", "pydantic", "psutil", "msgpack", "einops", "timm")
BUILD = ("simplejpeg", "av", "pyarrow", "pandas", "numpy", "PIL", "tqdm")
COMMAND = ("jsonargparse", "docstring_parser", "yaml")
PIP = {
    "PIL": "pillow",
    "cpuinfo": "py-cpuinfo",
    "docstring_parser": "docstring-parser",
    "nvidia.dali": "nvidia-dali-cuda120",
    "nvidia.nvimgcodec": "nvidia-nvimgcodec-cu12",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}  # names at PyPI


@dataclass(frozen=True)
class Section:
    """A process that measures.

    Attributes:
        name: on the command line and of its file.
        question: the question that it answers.
        limit_s: seconds after which it is killed, over all calls.
        modules: packages that it imports.
        after: a section whose files it reads, which is run before it.
        hardware: the part of a GPU that it measures; without it, "" says that a CPU can try it.
        whole: begin it only with all of its time left, because it has one case.
        makes: its folder OUT/<name> is its result; without it, it is measured anew.
    """

    name: str
    question: str
    limit_s: int
    modules: tuple[str, ...]
    after: str = ""
    hardware: str = ""
    whole: bool = False
    makes: bool = False

    @property
    def missing(self) -> list[str]:
        """Return the packages that are not installed, by their names at PyPI."""
        return [PIP.get(module, module) for module in dict.fromkeys(self.modules) if not is_installed(module)]


# The most telling first; the limits add up to 25 minutes.
SECTIONS = (
    Section("doctor", "does the machine carry the program?", 50, (), whole=True),
    Section("optimizer", "FusedAdam against torch's AdamW", 120, ENGINE),
    Section("footage", "frames for the sections below", 50, BUILD, makes=True),
    Section("tests", "do the tests marked gpu pass?", 120, (*LOADER, "pytest", "simplejpeg"), whole=True),
    Section("jpeg", "frames/s of DALI's JPEG decoder, by the share of the JPEG engines", 80, LOADER, "footage"),
    Section("clips", "clips/s of the Loader at one and four views, cores in use, memory", 110, LOADER, "footage"),
    Section("mfu", "a training step: time, MFU, compile, checkpointing", 380, ENGINE),
    Section("stall", "the share of a step that waits for clips", 100, (*ENGINE, *LOADER), "footage"),
    Section("attention", "SDPA's backends at the decoder's shapes", 30, ("torch",)),
    Section("losses", "a run through deepspeed against the CPU's losses", 130, (*ENGINE, *LOADER, *COMMAND), "footage"),
    Section("plain", "our step against the plain model's", 60, (*TORCH, "timm")),
    Section("nvdec", "frames/s of H.264 by NVDEC", 80, LOADER, hardware="NVDEC"),
    Section("checkpoint", "the stall of a save of ViT-H", 90, ENGINE),
    Section("embed", "clips/s of embeddings, samples/s of kNN", 40, (*TORCH, "timm", "pandas", "threadpoolctl")),
    Section("batch", "the largest batch", 60, ENGINE, hardware="a GPU's memory"),
)


def chosen(names: Sequence[str], sections: Sequence[Section]) -> list[Section]:
    """Return the sections of these names, all without any, each after the one that it needs, in the table's order."""
    needed = set(names or [section.name for section in sections])
    needed |= {section.after for section in sections if section.name in needed and section.after}
    return [section for section in sections if section.name in needed]


def is_installed(module: str) -> bool:
    """Return whether a package can be imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # its parent is missing
        return False
