"""Where jobs run: on this machine's cores, or on a Ray cluster."""

from __future__ import annotations

import logging
import multiprocessing
import os
from abc import ABC, abstractmethod
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from flerm_core.errors import FlermError, InvalidInput, Unsupported
from flerm_experiments.sweep.worker import Finished, work
from flerm_experiments.workloads.train_loop import Job


class Executor(ABC):
    """Runs jobs, `slots` at a time. A job that fails is its future's exception; the others go on."""

    slots: int

    @abstractmethod
    def submit(self, job: Job) -> Future[Finished]:
        """Starts `job`; at most `slots` are to be under way."""

    @abstractmethod
    def close(self) -> None:
        """Ends what is under way, without waiting for it."""


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Local(Executor):
    """A pool of processes, each of one thread and at most one per core."""

    def __init__(self, jobs: int | None = None) -> None:
        """`jobs` at a time; default: as many as there are cores. Raises `InvalidInput` for fewer than 1 or more than that."""
        self.slots = cores() if jobs is None else jobs
        if not 1 <= self.slots <= cores():
            raise InvalidInput(
                f"jobs is {self.slots}, but it must be from 1 to {cores()}, the cores of this machine"
            )
        self._pool = self._new()

    def _new(self) -> ProcessPoolExecutor:
        # Not forked: torch's threads and grpc's channels do not survive that.
        return ProcessPoolExecutor(
            self.slots, mp_context=multiprocessing.get_context("spawn"), initializer=_one_thread
        )

    def submit(self, job: Job) -> Future[Finished]:
        """Starts `job` in a free process."""
        try:
            return self._pool.submit(work, job)
        except BrokenProcessPool:  # one process died, and the pool with it: its jobs have failed, the next ones get a new pool
            self._pool = self._new()
            return self._pool.submit(work, job)

    def close(self) -> None:
        """Ends the processes."""
        running = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in running:
            process.terminate()


def _one_thread() -> None:
    # Before torch is imported, which reads it once.
    os.environ["OMP_NUM_THREADS"] = "1"


class OnRay(Executor):
    """A Ray cluster: Ray places the jobs on its nodes, one processor each, and tries again those whose node died.

    The nodes must reach the registry: a server, or a folder that all of them have.
    """

    def __init__(self, jobs: int | None = None, address: str | None = None) -> None:
        """Joins the cluster at `address` (default: RAY_ADDRESS, else one is started here)."""
        try:
            import ray
        except ImportError as error:
            raise Unsupported(
                "ray is not installed, which --on ray needs: pip install 'flerm[ray]'"
            ) from error
        self._ray: Any = ray
        self._started = not ray.is_initialized()
        if self._started:
            self._ray.init(
                address=address,
                log_to_driver=False,
                include_dashboard=False,
                logging_level=logging.ERROR,
            )
        total = int(self._ray.cluster_resources().get("CPU", 0))
        self.slots = total if jobs is None else jobs
        if not 1 <= self.slots <= total:
            raise InvalidInput(
                f"jobs is {self.slots}, but it must be from 1 to {total}, the processors of the Ray cluster"
            )
        self._work = self._ray.remote(num_cpus=1, max_retries=2)(work)

    def submit(self, job: Job) -> Future[Finished]:
        """Hands `job` to Ray."""
        future: Future[Finished] = self._work.remote(job).future()
        return future

    def close(self) -> None:
        """Leaves the cluster; one that was started here ends."""
        if self._started:
            self._ray.shutdown()


PLACES = ("local", "ray", "slurm")


def executor_named(name: str, jobs: int | None) -> Executor:
    """The place called `name` of those that run jobs themselves. Raises `InvalidInput` for others."""
    if name == "local":
        return Local(jobs)
    if name == "ray":
        return OnRay(jobs)
    raise InvalidInput(f"on is {name!r}, but it must be one of {', '.join(PLACES)}")


def reason(error: BaseException) -> str:
    """Why a job failed, in one line."""
    if isinstance(error, BrokenProcessPool):
        return "a process of the pool died (killed, or out of memory)"
    cause = getattr(error, "cause", None) or error  # Ray's errors carry the job's own
    text = " ".join(str(cause).split())
    return text if isinstance(cause, FlermError) and text else f"{type(cause).__name__}: {text}"
