"""A sweep whose process, runs and registry are killed at random finishes what it began: no finished
run is lost, and none is trained twice."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from forked import Forked, fork

from flerm_experiments.sweep.planner import plan
from flerm_experiments.sweep.registry_state import finished_trials
from flerm_experiments.sweep.spec import load
from tests.conftest import StartRegistry, free_port
from tests.experiments.sweep.command_scripts import played, recordings

SWEEPING = """
import sys
from flerm_client.cli import main
from flerm_experiments.cli.sweep import sweep
import typer
try:
    sweep(sys.argv[1], registry=sys.argv[2])
except typer.Exit as ended:
    sys.exit(ended.exit_code)
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kills", [20])
def test_no_finished_run_is_lost_and_none_is_trained_twice(
    tmp_path: Path,
    start_registry: StartRegistry,
    monkeypatch: pytest.MonkeyPatch,
    kills: int,
) -> None:
    monkeypatch.setenv("TRAINED", str(tmp_path / "trained"))
    path = played(tmp_path, table="[run]\nretries = 1\n")
    path.write_text(path.read_text().replace("base_seeds = 1", "base_seeds = 3\nseeds = 3"))
    (tmp_path / "sweeping.py").write_text(SWEEPING)
    grpc = f"127.0.0.1:{free_port()}"
    registry = start_registry(grpc=grpc)
    chance = random.Random(20)
    done: set[str] = set()
    sweeping: Forked | None = None
    for _ in range(kills):
        if sweeping is None or not _alive(sweeping.pids[0]):
            sweeping = _begin(tmp_path, path, registry.address)
        time.sleep(chance.uniform(0.2, 4.0))  # when a kill comes is not the sweep's to choose
        what = chance.choice(["sweep", "run", "registry"])
        if what == "sweep":
            _kill(sweeping.pids[0])
            sweeping.wait(60)
            sweeping = None
        elif what == "run":
            for run in chance.sample(_runs(tmp_path), k=min(1, len(_runs(tmp_path)))):
                _kill(run)
        else:
            registry.stop(signal.SIGKILL)
            registry = start_registry(grpc=grpc)
        now = _finished(registry.address)
        assert done <= now, "a finished run is lost"
        done = now
    for _ in range(10):
        if sweeping is not None:
            sweeping.wait(300)
        sweep = load(str(path))
        losses = {
            trial: each.loss for trial, each in finished_trials(sweep, registry.address).items()
        }
        if not plan(sweep, losses):
            break
        sweeping = _begin(tmp_path, path, registry.address)
    assert plan(sweep, losses) == []
    assert done <= _finished(registry.address)
    ended = [
        each.spec.tags["job"]
        for each in recordings(registry.address)
        if each.status in ("completed", "diverged")
    ]
    assert len(ended) >= 20
    assert [key for key, count in Counter(ended).items() if count > 1] == []


def _begin(folder: Path, path: Path, address: str) -> Forked:
    return fork(
        folder / "sweeping.py", str(path), address, environments=[{}], output=folder / "sweep.log"
    )


def _runs(folder: Path) -> list[int]:
    found = [lock.read_text() for lock in folder.glob("flerm-runs/*/*/lock")]
    return [int(each) for each in found if each and _alive(int(each))]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _finished(address: str) -> set[Any]:
    found = recordings(address)
    return {each.spec.id for each in found if each.status in ("completed", "diverged")}
