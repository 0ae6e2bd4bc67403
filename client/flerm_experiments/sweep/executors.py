"""Executors run a sweep's jobs: on this machine's cores, or on a Ray cluster."""

from __future__ import annotations

import logging
import multiprocessing
import os
from abc import ABC, abstractmethod
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from flerm_core.errors import FlermError, InvalidInput, Unsupported
from flerm_experiments.sweep.command_job import CommandJob
from flerm_experiments.sweep.job_outcome import JobOutcome
from flerm_experiments.sweep.spec import Sweep
from flerm_experiments.sweep.trials import AnyJob
from flerm_experiments.sweep.worker import run_job


class Executor(ABC):
    """Runs jobs, at most `slots` at a time.

    The exception of a failed job is its future's; other jobs go on.
    """

    slots: int

    @abstractmethod
    def submit(self, job: AnyJob) -> Future[JobOutcome]:
        """Starts `job`. The caller keeps at most `slots` jobs under way."""

    @abstractmethod
    def close(self) -> None:
        """Ends all jobs under way without waiting for them."""


def available_cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class LocalExecutor(Executor):
    """A pool of processes of one thread each, at most one per core."""

    def __init__(self, jobs: int | None = None) -> None:
        """jobs: how many at a time; None for as many as there are cores.

        Raises `InvalidInput` for fewer than 1 or more than there are cores.
        """
        self.slots = available_cores() if jobs is None else jobs
        if not 1 <= self.slots <= available_cores():
            raise InvalidInput(
                f"jobs is {self.slots}, but it must be from 1 to {available_cores()}, the cores "
                "of this machine"
            )
        self._pool = self._new()

    def _new(self) -> ProcessPoolExecutor:
        # "spawn", because torch's threads and grpc's channels do not survive a fork.
        return ProcessPoolExecutor(
            self.slots,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_limit_to_one_thread,
        )

    def submit(self, job: AnyJob) -> Future[JobOutcome]:
        """Starts `job` in a free process."""
        try:
            return self._pool.submit(run_job, job)
        except BrokenProcessPool:
            # A process that dies breaks its pool: the pool's jobs have failed, later ones get a new
            # one.
            self._pool = self._new()
            return self._pool.submit(run_job, job)

    def close(self) -> None:
        """Ends the processes."""
        running = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in running:
            process.terminate()


def _limit_to_one_thread() -> None:
    # torch reads this once, when it is imported, and the pool's processes have not imported it yet.
    os.environ["OMP_NUM_THREADS"] = "1"


class RayExecutor(Executor):
    """A Ray cluster.

    Ray runs each job on one processor of a node, or on as many processors and GPUs as a command
    asks for, and again on another node when the node died. All nodes must reach the registry: a
    server, or a folder that they share.
    """

    def __init__(
        self, jobs: int | None = None, address: str | None = None, *, cpus: int = 1, gpus: int = 0
    ) -> None:
        """Joins a cluster, or starts one on this machine.

        jobs: how many at a time; None for as many as fit.
        cpus, gpus: of one job.
        address: the cluster's; None for that of RAY_ADDRESS, and where that is unset a cluster is
            started here.

        Raises `Unsupported` without ray, `InvalidInput` for fewer than 1 job or more than
        processors.
        """
        try:
            import ray
        except ImportError as error:
            raise Unsupported("--on ray needs the package ray: pip install 'flerm[ray]'") from error
        self._ray: Any = ray
        self._started = not ray.is_initialized()
        if self._started:
            self._ray.init(
                address=address,
                log_to_driver=False,
                include_dashboard=False,
                logging_level=logging.ERROR,
            )
        resources = self._ray.cluster_resources()
        total = int(resources.get("CPU", 0)) // cpus
        if gpus:
            total = min(total, int(resources.get("GPU", 0)) // gpus)
        self.slots = total if jobs is None else jobs
        if not 1 <= self.slots <= total:
            raise InvalidInput(
                f"jobs is {self.slots}, but it must be from 1 to {total}, the processors of the "
                "Ray cluster"
            )
        self._work = self._ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=2)(run_job)
        self._handed: list[Any] = []

    def submit(self, job: AnyJob) -> Future[JobOutcome]:
        """Hands `job` to Ray."""
        reference = self._work.remote(job)
        if isinstance(job, CommandJob):
            self._handed.append(reference)
        future: Future[JobOutcome] = reference.future()
        return future

    def close(self) -> None:
        """Leaves the cluster, and ends commands under way. A cluster that was started here ends."""
        for reference in self._handed:
            self._ray.cancel(reference)
        if self._handed:
            self._ray.wait(self._handed, num_returns=len(self._handed), timeout=60)
        if self._started:
            self._ray.shutdown()


EXECUTORS = ("local", "ray", "slurm")


def executor_named(name: str, jobs: int | None, sweep: Sweep) -> Executor:
    """The executor of `sweep` for `--on name`: local or ray. Raises `InvalidInput` for other names.

    slurm has none: `slurm_executor` only prints a script.
    """
    command = sweep.command
    if name == "local" and command is not None:
        from flerm_experiments.sweep.command_executor import CommandExecutor

        return CommandExecutor(command.limits, jobs)
    if name == "local":
        return LocalExecutor(jobs)
    if name == "ray":
        if command is None:
            return RayExecutor(jobs)
        return RayExecutor(jobs, cpus=command.limits.cpus, gpus=command.limits.gpus)
    raise InvalidInput(f"on is {name!r}, but it must be one of {', '.join(EXECUTORS)}")


def failure_reason(error: BaseException) -> str:
    """The cause of a failed job, in one line."""
    if isinstance(error, BrokenProcessPool):
        return "a process of the pool died (killed, or out of memory)"
    cause = getattr(error, "cause", None) or error  # Ray wraps the job's own error
    text = " ".join(str(cause).split())
    return text if isinstance(cause, FlermError) and text else f"{type(cause).__name__}: {text}"
