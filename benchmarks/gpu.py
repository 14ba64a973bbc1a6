"""Measure everything on the GPU at hand, unattended, and take up where an earlier call was stopped.

    make gpu                                   # python benchmarks/gpu.py, with the environment's Python if there is one
    make gpu SECTIONS="jpeg mfu" VIDEOS=FOLDER # sections by name; real footage instead of pictures that it makes
    python benchmarks/gpu.py --list            # the sections, their questions and limits
    python benchmarks/gpu.py --limit 540       # stops in time; the same command goes on
    python benchmarks/gpu.py --again mfu       # forgets a section and measures it anew
    python benchmarks/gpu.py --device cpu      # tries every section with tiny sizes, as far as a CPU goes

Each section is a process of its own (gpu_sections.py) and is killed, with all that it has started, when its time is
over; the next section follows. Its cases are written one by one: a section that was cut by --limit or by a kill goes on
with its next case, and a case that crashes its process costs this case alone. Results are in OUT/<section>.json and, as
a table after each section, in OUT/table.md; OUT is out/gpu/<device>. docs/gpu.md has the rest.

Exit codes: 0 all is measured or skipped, 1 a section failed or timed out, 2 bad usage or no GPU, 75 the rest is left
for the next call. Standard library only: any Python will do, and a section whose packages are missing says which.
"""

import argparse
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import ROOT
from benchmarks.gpu_plan import SECTIONS, Section, chosen
from benchmarks.gpu_table import (
    CUT,
    FAILED,
    LEFT,
    OK,
    SKIPPED,
    TIMED_OUT,
    Journal,
    Result,
    judged,
    load,
    page,
    save,
    section_text,
)
from mae3d.io.files import write_text

TOKEN = "MAE3D_GPU_OUT"  # in the environment of all that a section starts: its results' folder
LEAST_S, END_S = 20.0, 3.0  # a section is not begun with less; kept for the last table
CPU_PATIENCE = 4  # times the limits: a trial on a small machine is no measurement
LEFT_OVER = 75
PROGRAM = ROOT / "benchmarks" / "gpu_sections.py"


@dataclass(frozen=True)
class Run:
    """One call.

    Attributes:
        out: folder of the results.
        device: "cuda" or "cpu".
        videos: folder of footage; "" for pictures that are made.
        ends: `time.monotonic()` at which it must be over.
        program: file of the sections' processes.
    """

    out: Path
    device: str
    videos: str
    ends: float
    program: Path

    @property
    def left_s(self) -> float:
        """Return the seconds that are left for sections."""
        return self.ends - END_S - time.monotonic()

    def command(self, section: str) -> list[str]:
        """Return what a section's process is started with."""
        videos = ["--videos", self.videos] if self.videos else []
        return [sys.executable, str(self.program), section, "--device", self.device, "--out", str(self.out), *videos]


def main(argv: Sequence[str] | None = None, sections: Sequence[Section] = SECTIONS, program: Path = PROGRAM) -> int:
    """Run the sections, each a process of the program; return the exit code."""
    options = parsed(argv, sections)
    if options.list:
        for section in sections:
            lacks = f" (lacks {' '.join(section.missing)})" if section.missing else ""
            print(f"{section.name:11} {section.limit_s:4} s  {section.question}{lacks}")
        print(f"{'':11} {sum(section.limit_s for section in sections):4} s")
        return 0
    gpu = gpu_name()
    if options.device == "auto" and gpu is None:
        print("no NVIDIA GPU here: nothing was measured (--device cpu tries every section)", file=sys.stderr)
        return 2
    device = "cuda" if options.device in ("auto", "cuda") else "cpu"
    name = "cpu" if device == "cpu" else re.sub(r"[^a-z0-9]+", "-", (gpu or "gpu").lower()).strip("-")
    out = (options.out or ROOT / "out" / "gpu" / name).resolve()
    out.mkdir(parents=True, exist_ok=True)
    videos = str(Path(options.videos).resolve()) if options.videos else ""
    run = Run(out, device, videos, time.monotonic() + options.limit, program)
    with alone(out):
        end_leftovers(out)
        for name in options.again:
            forget(out, name)
        frames = load(out, "footage")
        if videos and frames and videos not in [row.get("source") for row in frames.rows]:
            refuse(f"{out}/footage was made of other frames than --videos {videos}: give another --out")
        return measure(run, chosen(options.sections or options.again, sections), sections)


def measure(run: Run, requested: Sequence[Section], sections: Sequence[Section]) -> int:
    """Run sections one after the other; the table is written after each."""
    questions = [(section.name, section.question) for section in sections]
    handler = signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # ends the section, writes the table, then stops
    try:
        for section in requested:
            if section.makes and not (run.out / section.name).is_dir():  # the tables alone came from another machine
                forget(run.out, section.name)
            before = load(run.out, section.name)
            if before and before.is_done:
                print(f"{section.name}: {before.status} (--again {section.name} measures it anew)", flush=True)
                continue
            print(f"{section.name} ...", end=" ", flush=True)
            result = section_result(section, run)
            if result is not None:
                save(run.out, result)
                write_text(run.out / "table.md", page(run.out, questions))  # a kill leaves it
                print(f"{result.status}\n\n{section_text(section.question, result)}\n", flush=True)
    except KeyboardInterrupt:
        print("stopped: the same command goes on", file=sys.stderr)
        return LEFT_OVER
    finally:
        signal.signal(signal.SIGTERM, handler)
        write_text(run.out / "table.md", page(run.out, questions))
    statuses = [result.status if (result := load(run.out, section.name)) else CUT for section in requested]
    print(f"{run.out / 'table.md'}: " + ", ".join(f"{statuses.count(s)} {s}" for s in dict.fromkeys(statuses)))
    if CUT in statuses:
        print("the rest is left for the next call: the same command goes on")
        return LEFT_OVER
    return int(FAILED in statuses or TIMED_OUT in statuses)


def section_result(section: Section, run: Run) -> Result | None:
    """Run a section's processes until it is done; None if there is no time to begin it."""
    again = f"python benchmarks/gpu.py --device {run.device} --again {section.name}"
    result = Result(section.name, SKIPPED, "", 0.0, again)
    if section.hardware and run.device == "cpu":
        return replace(result, reason=f"needs {section.hardware}")
    if section.missing:
        return replace(result, reason=f"needs packages: pip install {' '.join(section.missing)}")
    if section.after and not ((first := load(run.out, section.after)) and first.status == OK):
        return replace(result, reason=f"needs the section {section.after}, which is {first.status if first else LEFT}")
    before = load(run.out, section.name)
    journal = Journal.of(run.out, section.name)
    if journal.began:  # the run was killed in this case: once more
        journal.write(began="")
    limit = section.limit_s * (1 if run.device == "cuda" else CPU_PATIENCE)
    used = before.seconds if before else 0.0
    status, reason = "", ""
    while not status:
        left = limit - used
        if run.left_s < (left if section.whole else min(LEAST_S, left)):
            print("no time left for it", flush=True)
            return before
        started = time.monotonic()
        command = [*run.command(section.name), "--seconds", str(limit)]
        code = run_process(command, run, section.name, min(left, run.left_s))
        used += time.monotonic() - started
        journal = Journal.of(run.out, section.name)
        status, reason = judge_end(code, journal, is_own_limit=used >= limit - 0.1)
    return replace(result, status=status, reason=reason, seconds=used, facts=journal.facts, rows=journal.rows)


def judge_end(code: int | None, journal: Journal, *, is_own_limit: bool) -> tuple[str, str]:
    """Return the status and reason after a process; "" if another one is to go on after a case that crashed.

    Args:
        code: exit code; None for a process that was killed because its time was over.
        journal: what it left.
        is_own_limit: whether the section's limit, not the run's, was over.
    """
    if code is None:
        case = f" in {journal.began}" if journal.began else ""
        if is_own_limit:
            return TIMED_OUT, f"after its limit{case}"
        journal.write(began="")
        return CUT, f"by the run's limit{case}: the next call goes on"
    if journal.finished:
        return judged(journal.rows)
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    if not journal.began:
        return FAILED, f"{how} before any case: see {journal.path.name.replace('.rows.jsonl', '.log')}"
    journal.write(row={"case": journal.began, "error": how})
    return "", ""


def run_process(command: Sequence[str], run: Run, name: str, seconds: float) -> int | None:
    """Run a process and end all that it has started; return its exit code, None if it was killed for time."""
    python = str(Path(sys.executable).parent)
    path = f"{python}{os.pathsep}{os.environ.get('PATH', '')}"
    pythonpath = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    environment = {"PATH": path, "PYTHONPATH": pythonpath, "PYTHONUNBUFFERED": "1", TOKEN: str(run.out)}
    environment["TORCH_EXTENSIONS_DIR"] = os.environ.get("TORCH_EXTENSIONS_DIR") or str(run.out / "extensions")
    environment["DS_ACCELERATOR"] = run.device
    if run.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    with (run.out / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        try:
            return process.wait(max(seconds, 0.1))
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):  # a driver that does not let go of it
                process.wait(10)
            end_leftovers(run.out)


def end_leftovers(out: Path) -> None:
    """Kill what sections of this folder have left behind, also in sessions of their own, and its locks of compilers."""
    mark = f"{TOKEN}={out}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int(folder.name) != os.getpid() and mark in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)
    for lock in (out / "extensions").glob("**/lock"):  # a killed build of DeepSpeed's; the next one would wait for ever
        lock.unlink(missing_ok=True)


def forget(out: Path, name: str) -> None:
    """Remove a section's results."""
    for suffix in (".json", ".rows.jsonl", ".log"):
        (out / f"{name}{suffix}").unlink(missing_ok=True)
    shutil.rmtree(out / name, ignore_errors=True)  # of what it makes


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold the folder's lock; SystemExit 2 if another call has it."""
    with (out / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            refuse(f"another call is measuring into {out}: wait for its end, or give another --out")
        yield


def gpu_name() -> str | None:
    """Return the first GPU's name, "gpu" if the driver has one that nvidia-smi does not name; None without a GPU."""
    if smi := shutil.which("nvidia-smi"):
        query = [smi, "--query-gpu=name", "--format=csv,noheader"]
        with suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run(query, capture_output=True, encoding="utf-8", timeout=30, check=False)
            if done.returncode == 0 and done.stdout.strip():
                return done.stdout.splitlines()[0].strip()
    return "gpu" if Path("/dev/nvidia0").exists() else None


def parsed(argv: Sequence[str] | None, sections: Sequence[Section]) -> argparse.Namespace:
    """Return the command line's values; SystemExit 2 for names that are no sections."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help="default: all")
    parser.add_argument("--list", action="store_true", help="print the sections")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--out", type=Path, help="folder of the results (out/gpu/<device>)")
    parser.add_argument("--videos", default="", help="folder of footage; default: pictures that it makes")
    parser.add_argument("--limit", type=float, default=1500, help="seconds of this call (%(default)s)")
    parser.add_argument("--again", nargs="+", default=[], metavar="SECTION", help="measure these anew")
    options = parser.parse_args(argv)
    names = [section.name for section in sections]
    for name in [*options.sections, *options.again]:
        if name not in names:
            refuse(f"{name}: no such section; they are {', '.join(names)}")
    if options.videos and not Path(options.videos).is_dir():
        refuse(f"--videos {options.videos}: no such folder; without it the sections make their own pictures")
    return options


def refuse(message: str) -> NoReturn:
    """Print an error and leave with exit code 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    sys.exit(main())
