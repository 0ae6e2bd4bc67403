"""One run of a user's command: a process group of its own, watched until its recording has ended.

How a run ended is read from the registry. So a run that ended counts even where its sweep was
killed. A run that another sweep is running is waited for, and not started a second time.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

from flerm_client.registry.address import address_of
from flerm_client.registry.client import RegistryClient
from flerm_client.training.run_instructions import RunInstructions
from flerm_core.errors import FlermError, NotFound
from flerm_core.records.recording import Recording
from flerm_experiments.sweep.command import Objective
from flerm_experiments.sweep.early_stop import (
    STOPPED,
    Losses,
    is_over,
    losses_by_step,
    reason_to_stop,
)
from flerm_experiments.sweep.job_outcome import JobOutcome
from flerm_experiments.sweep.run_limits import RunLimits
from flerm_experiments.sweep.run_lock import RunLock, Stopped, end_group, running_alone

JOB_TAG = "job"
"""The tag that holds a job's key."""

_LOOK = 0.1  # seconds between two looks at a process
_LOOK_AT_LOSSES = 2.0  # seconds between two looks at what the registry has of a run
_DELIVERY = 60.0  # seconds for a run's last rows to reach the registry


class CommandFailed(FlermError):
    """A run of a command that did not end with a loss. The message says why."""


class _Hopeless(Exception):
    """The run under way is to be stopped early. The message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandJob:
    """One run of a command.

    key: a digest of everything that decides how it runs, a tag of its recording.
    words: the command line.
    folder: for its output and the placeholder `{folder}`.
    directory: where it runs.
    registry: its address; None for FLERM_REGISTRY.
    instructions: what its script is told.
    objective: None for the loss that the script logs.
    limits: that its process has.
    """

    key: str
    words: tuple[str, ...]
    folder: Path
    directory: Path
    registry: str | None
    instructions: RunInstructions
    objective: Objective | None = None
    limits: RunLimits = field(default_factory=RunLimits)

    @property
    def tags(self) -> Mapping[str, str]:
        """The tags of its recording."""
        return self.instructions.tags

    @property
    def variant(self) -> str:
        """The variant of the run's recording."""
        return self.instructions.variant or ""

    @property
    def output(self) -> Path:
        """The file with what the process printed."""
        return self.folder / "output.log"

    def environment(self) -> dict[str, str]:
        """The environment of its process."""
        own = self.instructions.variables()
        if self.registry is not None:
            own["FLERM_REGISTRY"] = self.registry
        threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(self.limits.cpus))}
        return {**os.environ, **threads, **own}


def run_command(
    job: CommandJob,
    *,
    devices: str | None = None,
    stopped: Stopped = lambda: False,
) -> JobOutcome:
    """Runs `job`, unless its recording in the registry has ended. Returns how the run ended.

    devices: the value of CUDA_VISIBLE_DEVICES; None: it stays as it is.
    stopped: called again and again while the process runs. Once it returns True, the process group
        is ended.

    Raises `CommandFailed` where no attempt ended with a loss, and `KeyboardInterrupt` when stopped.
    """
    began = time.monotonic()
    job.folder.mkdir(parents=True, exist_ok=True)
    environment = job.environment()
    if devices is not None:
        environment["CUDA_VISIBLE_DEVICES"] = devices
    with running_alone(job.folder, stopped) as lock:
        ended, problem = _ended(job, patient=False), ""
        for _ in range(1 + job.limits.retries):
            if ended is not None:
                break
            try:
                problem = _attempt(job, environment, lock, stopped)
            except _Hopeless as why:
                ended = _stopped_early(job, str(why))
            else:
                ended = _ended(job, patient=not problem)
        if ended is None:
            raise CommandFailed(problem or _nothing_recorded(job))
    loss = ended.final_loss
    if ended.status == "completed" and loss is None:
        raise CommandFailed(
            "the run is recorded without a loss: call flerm.log(loss=...) before each step, or "
            "name an [objective]"
        )
    status = "stopped early" if ended.status == "interrupted" else ended.status
    return JobOutcome(status, math.inf if loss is None else loss, time.monotonic() - began)


def dry_run(job: CommandJob, *, stopped: Stopped = lambda: False) -> str:
    """What the match of `job` would do, as its script prints it; nothing is recorded.

    Raises `CommandFailed` where the script fails, as where its tensors have no targets.
    """
    dry = replace(
        job,
        folder=job.folder.with_name(f"{job.folder.name}-dry-run"),
        instructions=replace(job.instructions, mode="dry-run"),
    )
    dry.folder.mkdir(parents=True, exist_ok=True)
    dry.output.unlink(missing_ok=True)
    with running_alone(dry.folder, stopped) as lock:
        problem = _attempt(dry, dry.environment(), lock, stopped)
    if problem:
        raise CommandFailed(f"the dry run of the match failed: {problem}")
    return dry.output.read_text(errors="replace")


def _nothing_recorded(job: CommandJob) -> str:
    """A sentence on why a run has no loss although its process ended with exit code 0."""
    if job.objective is not None and _recordings(job):
        try:
            job.objective.read(job.output, {"folder": str(job.folder)})
        except NotFound as error:
            return str(error)
    return (
        f"the command ended well, but the registry has no ended recording of it in "
        f"{job.instructions.family!r}: does the script call FLeRM.auto? Its output is {job.output}"
    )


def _attempt(
    job: CommandJob, environment: Mapping[str, str], lock: RunLock, stopped: Stopped
) -> str:
    """Runs the command once; why it failed, or an empty text."""
    _put_aside(job.output)
    with job.output.open("wb") as output:
        try:
            process = subprocess.Popen(
                job.words,
                cwd=job.directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[lock.fileno()],
            )
        except OSError as error:
            return f"{job.words[0]} cannot be started ({error.strerror})"
        lock.belongs_to(process.pid)
        with _ending_group(process):
            return _watch(job, process, stopped)


def _put_aside(output: Path) -> None:
    """Renames what an earlier attempt printed, in which the objective of this one must not lie."""
    if output.exists() and output.stat().st_size:
        taken = {each.name for each in output.parent.iterdir()}
        names = (f"{output.stem}-{number}{output.suffix}" for number in count(1))
        output.rename(output.with_name(next(name for name in names if name not in taken)))


@contextmanager
def _ending_group(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Ends the process group of `process` on leaving, also after an error."""
    try:
        yield
    finally:
        end_group(process.pid, lambda: process.poll() is not None)


def _watch(job: CommandJob, process: subprocess.Popen[bytes], stopped: Stopped) -> str:
    limit = job.limits.time_limit
    until = None if limit is None else time.monotonic() + limit
    look = time.monotonic() + _LOOK_AT_LOSSES
    while (code := process.poll()) is None:
        if stopped():
            raise KeyboardInterrupt
        if until is not None and time.monotonic() > until:
            return f"it ran longer than its time limit of {limit:g} s; see {job.output}"
        if job.limits.early_stop and time.monotonic() > look:
            if why := reason_to_stop(_losses(job)):
                raise _Hopeless(why)
            look = time.monotonic() + _LOOK_AT_LOSSES
        try:
            process.wait(_LOOK)
        except subprocess.TimeoutExpired:
            continue
    if code == 0:
        return ""
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"has exit code {code}"
    return f"it {how}; {_last_line(job.output)}"


def _last_line(output: Path) -> str:
    lines = [line.strip() for line in output.read_text(errors="replace").splitlines()]
    last = next((line for line in reversed(lines) if line), "")
    return f"the last line of {output} is: {last[:200]}" if last else f"{output} is empty"


def _ended(job: CommandJob, *, patient: bool) -> Recording | None:
    """The job's recording that is completed or diverged, with its final loss; None without one.

    patient: whether to wait for rows that the uploader is still delivering.
    """
    until = time.monotonic() + (_DELIVERY if patient else 0.0)
    while True:
        found = _recordings(job)
        counted = next((each for each in found if is_over(each)), None)
        if counted is not None:
            return _judged(job, counted)
        # What is not there after a command that ended well was never recorded; what is running is
        # still on its way.
        if time.monotonic() >= until or not any(each.status == "running" for each in found):
            return None
        time.sleep(_LOOK)


def _stopped_early(job: CommandJob, why: str) -> Recording | None:
    """Writes that the run was stopped, so that the same sweep does not train it again."""
    newest = next(iter(_recordings(job)), None)
    if newest is None or is_over(newest):
        return newest
    with RegistryClient(job.registry) as client:
        return client.judge(newest.spec.id, None, status="interrupted", remarks=[f"{STOPPED}{why}"])


def _losses(job: CommandJob) -> Losses:
    """Those of the run under way, and of the completed runs of its curve."""
    said, sweep = job.instructions, {key: job.tags[key] for key in job.tags if key != JOB_TAG}
    mine: dict[int, float] = {}
    others: list[dict[int, float]] = []
    if not _recordings(job):
        return Losses(mine, others)
    with RegistryClient(job.registry) as client:
        for each in client.recordings(
            said.family, role=said.role, variant=said.variant, tags=sweep
        ):
            own = each.spec.tags.get(JOB_TAG) == job.key and each.status == "running"
            same = all(each.spec.config.get(key) == value for key, value in said.config.items())
            if own:
                mine = losses_by_step(client.trajectory(each.spec.id))
            elif same and each.status == "completed":
                others.append(losses_by_step(client.trajectory(each.spec.id)))
    return Losses(mine, others)


def _recordings(job: CommandJob) -> list[Recording]:
    folder = address_of(job.registry).folder
    if folder is not None and not folder.exists():  # the first recording makes it
        return []
    with RegistryClient(job.registry) as client:
        return list(client.recordings(job.instructions.family, tags={JOB_TAG: job.key}))


def _judged(job: CommandJob, recording: Recording) -> Recording | None:
    """The recording with the loss that the job's objective names, in an attempt of its own.

    None where the objective is not there, as after a kill before the run printed its loss.
    """
    if job.objective is None or recording.final_loss is not None or recording.status != "completed":
        return recording
    try:
        loss = job.objective.read(job.output, {"folder": str(job.folder)})
    except (NotFound, OSError):
        return None
    with RegistryClient(job.registry) as client:
        if math.isfinite(loss):
            return client.judge(recording.spec.id, loss)
        return client.judge(recording.spec.id, None, status="diverged")
