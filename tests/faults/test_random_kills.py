"""SIGKILL at random moments of a run: what was measured reaches the registry, once, with the values it had."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from waiting import until

from flerm_client import RegistryClient
from flerm_client.cli import main
from flerm_client.spool import spool_files

NURSERY = Path(__file__).parent / "jobs" / "nursery.py"
STEPS = 40
PACE = 0.01
LONGEST = 1.2  # seconds from a run's first word to its kill: before the first measurement, in mid-run, near the end

FEW = range(3)
MANY = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 50)]


class Nursery:
    """Forks training runs; the one under way is killed by the test."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(NURSERY)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def begin(self, registry: str, spool: Path, seed: int) -> int:
        """Starts a run; its pid."""
        order = {
            "registry": registry,
            "spool": str(spool),
            "seed": seed,
            "steps": STEPS,
            "pace": PACE,
        }
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())["pid"]

    def rest(self) -> dict:
        """What the run said until its end: `recording`, the last `step`, and `values` when it was not killed."""
        said = {"step": 0}
        for line in self.process.stdout:
            said |= json.loads(line)
            if "ended" in said:
                break
        return said

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(30.0)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def nursery():
    """One for all: torch is imported once."""
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def uninterrupted(nursery, tmp_path_factory):
    """The values [steps, tensors] of a run of `seed` that nobody disturbs."""
    found: dict[int, np.ndarray] = {}

    def values(seed: int) -> np.ndarray:
        if seed not in found:
            nursery.begin(
                tmp_path_factory.mktemp("folder").as_uri(), tmp_path_factory.mktemp("spool"), seed
            )
            found[seed] = np.array(nursery.rest()["values"], np.float32)
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
    """The registry has the steps from 1 on, `least` of them or more, each with the value of the undisturbed run."""
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
def test_the_training_process_is_killed(seed, nursery, uninterrupted, registry, tmp_path):
    values = uninterrupted(seed)
    run = nursery.begin(registry.address, tmp_path, seed)
    at_a_random_moment(seed)
    kill(run)
    said = nursery.rest()
    # The uploader outlives it. Only where the run died before it had one, something is left to sync.
    until(
        lambda: spool_files(tmp_path) == [] or uploader_is_gone(tmp_path),
        "the uploader neither delivered nor left",
    )
    assert main(["sync", "--spool", str(tmp_path)]) == 0
    assert spool_files(tmp_path) == []
    assert_holds(registry.address, said, values, said["step"], {"interrupted", "completed"})


@pytest.mark.parametrize("seed", [*FEW, *MANY])
def test_the_uploader_is_killed(seed, nursery, uninterrupted, registry, tmp_path):
    values = uninterrupted(seed)
    run = nursery.begin(registry.address, tmp_path, seed)
    at_a_random_moment(seed)
    kill(uploader_of(run))
    said = nursery.rest()
    np.testing.assert_array_equal(said["values"], values)
    assert spool_files(tmp_path) == []
    assert_holds(registry.address, said, values, STEPS, {"completed"})


@pytest.mark.parametrize("seed", [*FEW, *MANY])
def test_both_are_killed(seed, nursery, uninterrupted, registry, tmp_path):
    values = uninterrupted(seed)
    run = nursery.begin(registry.address, tmp_path, seed)
    at_a_random_moment(seed)
    kill(uploader_of(run))
    kill(run)
    kill(uploader_of(run))
    said = nursery.rest()
    until(lambda: uploader_is_gone(tmp_path), "an uploader lives on")
    assert main(["sync", "--spool", str(tmp_path)]) == 0
    assert spool_files(tmp_path) == []
    assert_holds(registry.address, said, values, said["step"], {"interrupted", "completed"})


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
