"""Threads that read: as few as keep up, all of them where the storage is slow, and none that holds up the end.

threads = ReadThreads(16)
threads.submit(source.fetch, clip).result()
threads.close()
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

JOIN_S = 0.01  # that a job waits for the threads that are at work, before another joins them
CLOSE_S = 5.0  # most that closing waits for reads under way

Job = tuple[float, Future[Any], Callable[[Any], Any], Any]  # since when it waits, its result, a function and its input


class ReadThreads:
    """A pool whose threads die with the process, and that wakes no more of them than it needs.

    A thread that hangs in a read does not keep the interpreter from leaving, as those of concurrent.futures would. As
    long as reads are quick, one thread makes them all: threads that pass Python's lock around take more time than they
    save. Others join in as soon as a job has waited for `JOIN_S`; one of those that sleep stands by for that.
    """

    def __init__(self, count: int):
        self._jobs: deque[Job] = deque()
        lock = threading.Lock()
        self._changed = threading.Condition(lock)  # wakes a thread that sleeps
        self._idle = threading.Condition(lock)  # wakes the one that stands by, because no other is at work
        self._sleeping, self._working, self._calls = count, 0, 0  # calls: of threads that are to wake and stand by
        self._has_standby = self._is_closed = False
        self._threads = [threading.Thread(target=self._work, name=f"read-clip-{i}", daemon=True) for i in range(count)]
        for thread in self._threads:
            thread.start()

    def submit(self, function: Callable[[Any], Any], argument: Any) -> Future[Any]:
        """Queue a job, and return its result to come."""
        future: Future[Any] = Future()
        with self._changed:
            self._jobs.append((time.monotonic(), future, function, argument))
            self._call_standby()
            if not self._working:
                self._idle.notify()
        return future

    def close(self) -> bool:
        """Drop queued jobs and wait a little for the rest; return whether all threads have left."""
        with self._changed:
            self._jobs.clear()
            self._is_closed = True
            self._changed.notify_all()
            self._idle.notify_all()
        end = time.monotonic() + CLOSE_S
        for thread in self._threads:
            thread.join(max(end - time.monotonic(), 0))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        while self._stand_by():
            job = self._next(after_one=False)
            while job is not None:
                _, future, function, argument = job
                try:
                    future.set_result(function(argument))
                except BaseException as error:
                    future.set_exception(error)
                job = self._next(after_one=True)

    def _stand_by(self) -> bool:
        """Sleep until called, then wait until the oldest job is this thread's to take; return False at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._calls or self._is_closed)
            if self._is_closed:
                return False
            self._calls -= 1
            while self._jobs and self._working and (rest := self._jobs[0][0] + JOIN_S - time.monotonic()) > 0:
                self._idle.wait(rest)
            self._has_standby = False
        return True

    def _next(self, *, after_one: bool) -> Job | None:
        """Take the oldest job; None, after which the thread sleeps, if there is none."""
        with self._changed:
            self._working -= after_one
            if not self._jobs:
                self._sleeping += 1
                return None
            self._working += 1
            job = self._jobs.popleft()
            if self._jobs:
                self._call_standby()
            return job

    def _call_standby(self) -> None:
        if self._sleeping and not self._has_standby:
            self._has_standby = True
            self._sleeping -= 1
            self._calls += 1
            self._changed.notify()
