"""Every start of a thread, handler of a signal and finalizer is listed here with what it shares with others.

A read storm over many row groups, in a child, is the case that once ended in a SIGSEGV.
"""

import ast
import subprocess
import sys
from pathlib import Path

from tests.support.calls import ROOT, expressions_of, functions_with, name_of

STARTS = {"Thread", "Timer", "ThreadPoolExecutor", "ProcessPoolExecutor", "start_new_thread", "to_thread", "Process"}
STARTS |= {"run_in_executor", "add_done_callback", "register_at_fork", "finalize", "set_wakeup_fd", "fork"}
STARTS |= {"ThreadingHTTPServer"}

# What threads and the code beside them share, and why that is safe ─► the functions that start them.
SAFE = {
    "a mapped table, which is only read, and paths": ("preprocess.dataset.media.MediaFiles.changed",),
    "the corpus: mapped arrays that nobody writes; texts, behind dataset._TEXT_LOCK; cached properties, which two "
    "threads may compute twice alike. A descriptor is opened for each read and closed by the same thread. The "
    "reader's sums have a lock; headers and reads under way are dicts whose single items are set and removed, "
    "copied before a look; jobs and counts of threads are behind a condition": (
        "pipelines.reading.read_threads.ReadThreads.__init__",
    ),
    "needs and plan, behind a condition; the uses ahead, behind a lock; the cache, whose sums have a lock and "
    "whose files have locks of the system, for other processes too; fsspec's filesystem runs its own loop for "
    "calls of any thread": ("pipelines.reading.prefetch.Prefetcher.__init__",),
    "the bytes of the clips of one row, which nobody changes; a PyAV context of its own for each thread "
    "(threading.local); pixels come back by futures": ("pipelines.decoding.clips.ThreadDecoding.__init__",),
    "each call has a clip to read and a part of the output of its own; the caller waits for all": (
        "pipelines.decoding.crops.Cropper.__init__",
    ),
    "model and inputs, which are read only; the caller waits for all. The number of torch's threads is set by the "
    "thread that it holds for; a child that is forked has a pool of its own": ("mae3d.analysis.exact._pool",),
    "the decoder and its frames belong to the one thread; batches come out by futures, one at a time": (
        "mae3d.video.windows.VideoClips.__init__",
    ),
    "a job that is not changed any more, its copy of the weights, and a future; there is one at a time, and its "
    "collectives are of a group of their own": ("mae3d.training.saver.Saver._start",),
    "an event; names and counts that this thread alone writes, and that others read whole; files that are complete": (
        "mae3d.checkpoints.mirror.Mirror.push",
    ),
    "a queue of copied rows; the sink is opened, used and closed by the thread": (
        "mae3d.tracking.trackers.Tracker.__init__",
    ),
    "an event, and flags that one side sets once; the owner is replaced by the thread alone": (
        "mae3d.io.lock.Lock.__init__",
    ),
    "the hash and the position belong to the one thread until its last future is awaited; reads are by pread": (
        "preprocess.encode.tar_writer.GrowingHash.__init__",
    ),
    "the storage, whose calls may come from any thread; each call has a file or a folder of its own; results come "
    "back in order": (
        "preprocess.jobs.output.UrlOutput.digests",
        "preprocess.jobs.output.UrlOutput.fetch",
        "preprocess.sources.frame_folders._find_trees",
        "preprocess.sources.frame_places.look_up",
        "preprocess.sources.source.unread",
        "preprocess.sources.stacks._stacks_among",
    ),
    "the storage, as above; each call sets an item of its own in a dict that the caller reads when all are done": (
        "mae3d.io.storage.Storage.sizes",
    ),
    "the caller's own list of fetched files, which it does not touch until all threads are done; each fetches "
    "another": ("preprocess.sources.fetched_files.Kept.hold",),
    "tasks of their own; a decoder and a scratch of its own for each thread (threading.local); the list of "
    "decoders is read when the threads are done, or to stop them": ("preprocess.workers.executors.local_workers",),
    "files of a folder, which are replaced whole; each request opens one anew": (
        "launch.report.board_server.BoardServer.__init__",
    ),
    "nothing: each check makes what it looks at": ("launch.doctor.examine",),
    "a queue of lines; one thread alone reads the child's output": ("launch.common.folder_checks.check_folder",),
    "at the end of an object only its own folder or child, which nobody else has": (
        "preprocess.sources.fetched_files.kept_files",
        "preprocess.workers.decoder._Child.__init__",
    ),
}


def test_every_thread_says_what_it_shares_and_why_that_is_safe() -> None:
    listed = [function for functions in SAFE.values() for function in functions]
    assert sorted(functions_with(lambda call: name_of(call) in STARTS)) == sorted(listed)


def test_handlers_of_signals_are_in_few_hands() -> None:
    """A handler runs between two instructions of the main thread: it sets flags, and takes no lock."""
    assert functions_with(lambda call: name_of(call) == "signal") == {
        "launch.common.entry._give_terminal",
        "mae3d.training.stop_request.StopRequest.__enter__",
        "mae3d.training.stop_request.StopRequest.__exit__",
        "preprocess.encode.decoder_main.main",
    }


def test_what_all_threads_of_a_process_share_is_not_set() -> None:
    """The working folder, the mask of files, warnings' filters, and the seeds of the global generators."""
    names = {"chdir", "umask", "catch_warnings", "putenv", "setlocale"}
    assert functions_with(lambda call: name_of(call) in names) == {
        "mae3d.tracking.plots.save_figure",  # for a moment, in which another thread's warning may be shown once more
        "mae3d.video.dicom.open_dicom",  # in the decoder's child, which has one thread
        "mae3d.weights.graphs._named",  # of torch's exporter, which is called for by hand and has no threads
        "preprocess.encode.images.picture_header",
        "preprocess.encode.images.decode_upright",
    }


def test_no_test_forks_pytest() -> None:
    """It has threads by now, whose locks a forked child finds shut; the server of tests.support.launch has none."""

    def forks(call: ast.Call) -> bool:
        context = name_of(call) == "get_context" and ast.literal_eval(call.args[0])
        return name_of(call) == "fork" or context == "fork" or ast.unparse(call.func) == "multiprocessing.Process"

    calls = expressions_of(["tests"])
    assert {where for where, call in calls if isinstance(call, ast.Call) and forks(call)} == {
        "tests.support.launch_server._serve"
    }


# Two names a row group: each message of damage opens another one. All read threads look names up at the same time.
STORM = """
import faulthandler, logging, sys
faulthandler.enable()
sys.setswitchinterval(1e-5)
logging.disable()
from pathlib import Path
from benchmarks import soak
from preprocess.dataset import writer
soak.SHARD_SAMPLES, soak.ROW_GROUP = 100, 8
root = Path(sys.argv[1])
soak.write_samples(root, 1600)
import numpy as np
from pipelines.config import DataConfig
from pipelines.reading import shard_reader
from pipelines.reading.source import ClipSource
from pipelines.samples.corpus import open_corpus
from pipelines.sampling.requests import training_request
shard_reader.FIRST_WAIT_S = 0.001
shard_reader.pread = soak.bad_storage(shard_reader.pread, failing=0.2, damaged=0.05)
corpus, config = open_corpus([root]), DataConfig(repeat_aug=1, sampling_rate=1)
order = np.random.default_rng(0).permutation(1600)
requests = (
    training_request(corpus, config, rows=rows, positions=rows, epoch=0, seed=0, num_frames=4, size=16)
    for rows in order.reshape(25, 64)
)
source = ClipSource(corpus, requests, read_threads=16, prefetch=4, retries=20)
clips = replaced = 0
while (batch := source.next()) is not None:
    clips, replaced = clips + len(batch.clips), replaced + sum(batch.substituted)
print(clips, replaced > 100, source.reader.num_retries > 500, corpus.datasets[0]._index_file.metadata.num_row_groups)
source.close()
"""


def test_fault_20_and_fault_37_many_row_groups_bear_sustained_trouble(tmp_path: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-c", STORM, str(tmp_path / "shards")], cwd=ROOT, capture_output=True, encoding="utf-8",
        timeout=100, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr[-3000:]
    assert child.stdout.split() == ["1600", "True", "True", "200"]
