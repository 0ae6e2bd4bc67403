"""Runs a user's commands on this machine: one in each slot of processors or of GPUs."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue

from flerm_core.errors import InvalidInput
from flerm_experiments.sweep.command_job import CommandJob, run_command
from flerm_experiments.sweep.executors import Executor, available_cores
from flerm_experiments.sweep.job_outcome import JobOutcome
from flerm_experiments.sweep.run_limits import RunLimits
from flerm_experiments.sweep.trials import AnyJob


class CommandExecutor(Executor):
    """A thread for each slot, which waits for the process group of its command.

    A slot has the command's processors, or its GPUs, which CUDA_VISIBLE_DEVICES then names.
    """

    def __init__(self, limits: RunLimits, jobs: int | None = None) -> None:
        """limits: of one run.
        jobs: how many at a time; None for as many as there are slots.

        Raises `InvalidInput` for fewer than 1 job, or more than slots, and where there are too few
        processors or GPUs for one.
        """
        self._devices: SimpleQueue[str | None] = SimpleQueue()
        if limits.gpus:
            visible = visible_devices()
            slots, of = len(visible) // limits.gpus, f"{len(visible)} GPUs of this machine"
            groups = [visible[at * limits.gpus : (at + 1) * limits.gpus] for at in range(slots)]
            for group in groups:
                self._devices.put(",".join(group))
        else:
            slots, of = available_cores() // limits.cpus, f"{available_cores()} cores here"
            for _ in range(slots):
                self._devices.put(None)
        if slots < 1:
            need = f"run.gpus is {limits.gpus}" if limits.gpus else f"run.cpus is {limits.cpus}"
            raise InvalidInput(f"{need}, but there are {of}: a run does not fit")
        self.slots = slots if jobs is None else jobs
        if not 1 <= self.slots <= slots:
            raise InvalidInput(
                f"jobs is {self.slots}, but it must be from 1 to {slots}: a run has "
                f"{limits.gpus or limits.cpus} of the {of}"
            )
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(self.slots, thread_name_prefix="flerm-run")

    def submit(self, job: AnyJob) -> Future[JobOutcome]:
        """Starts `job` in a free slot."""
        assert isinstance(job, CommandJob)
        return self._pool.submit(self._run, job)

    def _run(self, job: CommandJob) -> JobOutcome:
        devices = self._devices.get()
        try:
            return run_command(job, devices=devices, stopped=self._stop.is_set)
        finally:
            self._devices.put(devices)

    def close(self) -> None:
        """Ends the process groups under way, and waits until they have ended."""
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)


def visible_devices() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [each.strip() for each in given.split(",") if each.strip()]
    import torch

    return [str(at) for at in range(torch.cuda.device_count())]
