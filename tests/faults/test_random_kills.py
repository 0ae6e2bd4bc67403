"""SIGKILL at random moments of a run: measurements reach the registry once, with their values."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from forked import fork
from waiting import until

from flerm_client import RegistryClient
from flerm_client.cli import main
from flerm_client.spool import spool_files

JOB = Path(__file__).parent / "jobs" / "run_to_kill.py"
STEPS = 40
PACE = 0.01
SECONDS = 90.0
LONGEST = 1.2  # seconds until a kill: before the first measurement, in mid-run, or near the end

FEW = range(3)
MANY = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 50)]


class Run:
    """A training run in a process of its own."""

    def __init__(self, registry: str, spool: Path, seed: int) -> None:
        self._output = spool / "said"
        order = {"registry": registry, "spool": str(spool), "seed": seed}
        order |= {"steps": STEPS, "pace": PACE}
        environments = [{"OMP_NUM_THREADS": "1"}]
        self._output.touch()
        self._processes = fork(
            JOB, json.dumps(order), environments=environments, output=self._output
        )
        (self.pid,) = self._processes.pids

    def wait(self) -> dict:
        """What the run said: `recording`, the last `step`, and `values` when it was not killed."""
        self._processes.wait(SECONDS)
        said = {"step": 0}
        for line in self._output.read_text().splitlines():
            said |= json.loads(line)
        return said


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The values [steps, tensors] of a run of `seed` that is not killed."""
    found: dict[int, np.ndarray] = {}

    def values(seed: int) -> np.ndarray:
        if seed not in found:
            folder, spool = tmp_path_factory.mktemp("folder"), tmp_path_factory.mktemp("spool")
            found[seed] = np.array(Run(folder.as_uri(), spool, seed).wait()["values"], np.float32)
        return found[seed]

    return values


def uploader_of(pid: int) -> int | None:
    """The uploader that the run `pid` has started, if it has by now."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    for child in children:
        try:
            if b"flerm_client.upload.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return None


def kill(pid: int | None) -> None:
    """SIGKILL; a process that has just ended needs none."""
    if pid is not None:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return


def at_a_random_moment(seed: int) -> None:
    threading.Event().wait(random.Random(seed).uniform(0.0, LONGEST))


def assert_holds(
    address: str, said: dict, values: np.ndarray, least: int, statuses: set[str]
) -> None:
    """The registry has at least `least` steps from 1 on, with the values of an undisturbed run."""
    with RegistryClient(address) as client:
        known = (
            {each.spec.id for each in client.recordings("killed")}
            if least == 0
            else {said["recording"]}
        )
        if said.get("recording") not in known:
            return  # killed before anything was measured
        stored = client.trajectory(said["recording"])
        assert client.recording(said["recording"]).status in statuses
    assert least <= len(stored)
    assert stored.steps.tolist() == list(range(1, len(stored) + 1))
    np.testing.assert_array_equal(stored.values, values[: len(stored)])


@pytest.mark.parametrize("seed", [*FEW, *MANY])
def test_the_training_process_is_killed(seed, uninterrupted, registry, tmp_path):
    values = uninterrupted(seed)
    run = Run(registry.address, tmp_path, seed)
    at_a_random_moment(seed)
    kill(run.pid)
    said = run.wait()
    # The uploader outlives the run. Something is left only if the run died before it had one.
    until(
        lambda: spool_files(tmp_path) == [] or uploader_is_gone(tmp_path),
        "the uploader neither delivered nor left",
    )
    a_minute_passes_for_empty_files(tmp_path)
    assert main(["sync", "--spool", str(tmp_path)]) == 0
    assert spool_files(tmp_path) == []
    assert_holds(registry.address, said, values, said["step"], {"interrupted", "completed"})


@pytest.mark.parametrize("seed", [*FEW, *MANY])
def test_the_uploader_is_killed(seed, uninterrupted, registry, tmp_path):
    values = uninterrupted(seed)
    run = Run(registry.address, tmp_path, seed)
    at_a_random_moment(seed)
    kill(uploader_of(run.pid))
    said = run.wait()
    np.testing.assert_array_equal(said["values"], values)
    assert spool_files(tmp_path) == []
    assert_holds(registry.address, said, values, STEPS, {"completed"})


@pytest.mark.parametrize("seed", [*FEW, *MANY])
def test_both_are_killed(seed, uninterrupted, registry, tmp_path):
    values = uninterrupted(seed)
    run = Run(registry.address, tmp_path, seed)
    at_a_random_moment(seed)
    kill(uploader_of(run.pid))
    kill(run.pid)
    kill(uploader_of(run.pid))
    said = run.wait()
    until(lambda: uploader_is_gone(tmp_path), "an uploader lives on")
    a_minute_passes_for_empty_files(tmp_path)
    assert main(["sync", "--spool", str(tmp_path)]) == 0
    assert spool_files(tmp_path) == []
    assert_holds(registry.address, said, values, said["step"], {"interrupted", "completed"})


def a_minute_passes_for_empty_files(spool: Path) -> None:
    """Makes empty spool files old enough that `flerm sync` removes them.

    A run that is killed between creating its file and writing to it leaves an empty one. Nothing
    names its owner, so that `flerm sync` waits a minute before it removes the file.
    """
    for path in spool_files(spool):
        if path.stat().st_size == 0:
            created = path.stat().st_mtime
            os.utime(path, (created, created - 61.0))


def uploader_is_gone(spool: Path) -> bool:
    """Whether no uploader of a file in `spool` lives."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if b"flerm_client.upload.worker" in command and str(spool).encode() in command:
            return False
    return True
