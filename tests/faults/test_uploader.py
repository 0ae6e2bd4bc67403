"""Measurements reach the registry once, whichever process is killed on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from spooled import child_environment, row_of, spec_of, write_run

from flerm_client import RegistryClient
from flerm_client.cli import main
from flerm_client.spool.process_owner import ProcessOwner
from flerm_client.upload.reporter import SpoolReporter
from flerm_core.records.recording import Attempt, Ending, Measurement

SECONDS = 20.0

# A training run: it appends the steps that it reads from standard input. "finish" ends it.
RUN = """
import json, sys
from spooled import *
from flerm_client.upload.reporter import SpoolReporter
registry, recording_id = sys.argv[1:]
reporter = SpoolReporter.open(registry, spec_of("faults", id=recording_id), Attempt())
print("open", reporter._uploader.pid, flush=True)
for line in sys.stdin:
    if line == "finish\\n":
        print(json.dumps(reporter.finish(Ending(final_loss=0.5)).left), flush=True)
        break
    for step in json.loads(line):
        reporter.append(row_of(step))
    print("done", flush=True)
"""


class Run:
    """A training process; `uploader`: the process that it started."""

    def __init__(self, registry: str, recording_id: str, spool: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN, registry, recording_id],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=child_environment(FLERM_SPOOL=str(spool)),
        )
        word, pid = self.process.stdout.readline().split()
        assert word == "open"
        self.uploader = ProcessOwner.of(int(pid))

    def say(self, line: str) -> str:
        """Writes a line to the process; the line that it answers."""
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        """Kills the process."""
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def start_run(tmp_path):
    """Starts training processes that spool in `tmp_path / "spool"`."""
    started: list[Run] = []

    def start(registry: str, recording_id: str) -> Run:
        started.append(Run(registry, recording_id, tmp_path / "spool"))
        return started[-1]

    yield start
    for run in started:
        run.end()
        kill(run.uploader)


def kill(owner: ProcessOwner) -> None:
    if owner.alive:
        os.kill(owner.pid, signal.SIGKILL)


def until(condition, what: str) -> None:
    """Asks again and again: processes that are not ours have no event to wait for."""
    end = time.monotonic() + SECONDS
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end, what
        pause.wait(0.02)


def assert_holds(address: str, recording_id: str, steps, status: str | None = "completed") -> None:
    with RegistryClient(address) as client:
        trajectory = client.trajectory(recording_id)
        assert trajectory.steps.tolist() == list(steps)
        np.testing.assert_array_equal(
            trajectory.values, np.stack([row_of(step).values for step in steps])
        )
        if status:
            assert client.recording(recording_id).status == status


def rows_at(address: str, recording_id: str) -> int:
    with RegistryClient(address) as client:
        return sum(
            recording.rows
            for recording in client.recordings("faults")
            if recording.spec.id == recording_id
        )


def spool_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.is_file())


def test_a_run_is_delivered_whole_and_leaves_nothing_behind(registry, tmp_path):
    spec = spec_of("faults")
    with SpoolReporter.open(registry.address, spec, Attempt(), spool=tmp_path) as reporter:
        for step in range(1, 41):
            reporter.append(row_of(step))
        delivery = reporter.finish(Ending(final_loss=0.5), timeout=SECONDS)
        assert (delivery.left, delivery.problem) == (0, "")
    assert_holds(registry.address, spec.id, range(1, 41))
    assert spool_files(tmp_path) == []


def test_measurements_arrive_while_the_run_goes_on(registry, start_run):
    spec = spec_of("faults")
    run = start_run(registry.address, spec.id)
    run.say("[1]")
    until(lambda: rows_at(registry.address, spec.id) == 1, "the first row did not arrive")
    taken = []
    for step in range(2, 6):
        begin = time.monotonic()
        run.say(f"[{step}]")
        until(lambda at=step: rows_at(registry.address, spec.id) == at, "a row did not arrive")
        taken.append(time.monotonic() - begin)
    assert min(taken) < 1.0, "a busy machine delays some of them, but not each"
    assert_holds(registry.address, spec.id, range(1, 6), "running")


def test_a_server_killed_and_restarted_takes_the_rest(start_registry, tmp_path):
    server = start_registry()
    spec = spec_of("faults")
    reporter = SpoolReporter.open(server.address, spec, Attempt(), spool=tmp_path / "spool")
    reporter.append(row_of(1))
    until(lambda: rows_at(server.address, spec.id) == 1, "the first row did not arrive")
    server.stop(signal.SIGKILL)
    for step in range(2, 30):
        reporter.append(row_of(step))
    again = start_registry(db=server.db, grpc=server.grpc)
    delivery = reporter.finish(Ending(final_loss=0.5), timeout=SECONDS)
    assert (delivery.left, delivery.problem) == (0, "")
    assert_holds(again.address, spec.id, range(1, 30))


def test_a_registry_that_lost_its_database_gets_everything_again(start_registry, tmp_path):
    server = start_registry(db=f"sqlite:///{tmp_path}/one.db")
    spec = spec_of("faults")
    reporter = SpoolReporter.open(server.address, spec, Attempt(), spool=tmp_path / "spool")
    reporter.append(row_of(1))
    until(lambda: rows_at(server.address, spec.id) == 1, "the first row did not arrive")
    server.stop()
    other = start_registry(db=f"sqlite:///{tmp_path}/two.db", grpc=server.grpc)
    reporter.append(row_of(2))
    assert reporter.finish(Ending(final_loss=0.5), timeout=SECONDS).left == 0
    assert_holds(other.address, spec.id, [1, 2])


@pytest.mark.parametrize("later", [(5, 6), ()], ids=["more rows follow", "only the end follows"])
def test_a_registry_restored_from_an_older_backup_gets_the_rows_since_then_again(
    start_registry, tmp_path, later
):
    server = start_registry(db=f"sqlite:///{tmp_path}/runs.db")
    spec = spec_of("faults")
    reporter = SpoolReporter.open(server.address, spec, Attempt(), spool=tmp_path / "spool")
    for step in (1, 2):
        reporter.append(row_of(step))
    until(lambda: rows_at(server.address, spec.id) == 2, "the first rows did not arrive")
    copy = [str(tmp_path / "monday.db"), "--db", server.db]
    assert main(["db", "backup", *copy]) == 0
    for step in (3, 4):
        reporter.append(row_of(step))
    until(lambda: rows_at(server.address, spec.id) == 4, "the rows did not arrive")
    server.stop()
    assert main(["db", "restore", *copy]) == 0
    again = start_registry(db=server.db, grpc=server.grpc)
    for step in later:
        reporter.append(row_of(step))
    delivery = reporter.finish(Ending(final_loss=0.5), timeout=SECONDS)
    assert (delivery.left, delivery.problem) == (0, "")
    assert_holds(again.address, spec.id, [1, 2, 3, 4, *later])


@pytest.mark.parametrize("moment", [0.0, 0.2, 1.2])
def test_a_killed_uploader_is_started_again(registry, start_run, moment):
    spec = spec_of("faults")
    run = start_run(registry.address, spec.id)
    run.say("[1, 2]")
    threading.Event().wait(moment)
    kill(run.uploader)
    run.say("[3, 4]")
    assert run.say("finish") == "0"
    assert_holds(registry.address, spec.id, [1, 2, 3, 4])


@pytest.mark.parametrize("moment", [0.0, 0.1, 0.6])
def test_a_killed_run_is_delivered_by_its_uploader_as_interrupted(
    registry, start_run, moment, tmp_path
):
    spec = spec_of("faults")
    run = start_run(registry.address, spec.id)
    run.say("[1, 2, 3]")
    threading.Event().wait(moment)
    run.process.kill()
    until(lambda: not run.uploader.alive, "the uploader did not leave")
    assert_holds(registry.address, spec.id, [1, 2, 3], "interrupted")
    assert spool_files(tmp_path / "spool") == []


def test_both_killed_then_sync_delivers_once(registry, start_run, tmp_path, monkeypatch, capsys):
    spec = spec_of("faults")
    run = start_run(registry.address, spec.id)
    run.say(json.dumps(list(range(1, 21))))
    kill(run.uploader)
    run.process.kill()
    run.process.wait()
    monkeypatch.setenv("FLERM_SPOOL", str(tmp_path / "spool"))
    assert main(["sync"]) == 0
    assert "delivered, 20 measurements" in capsys.readouterr().out
    assert main(["sync"]) == 0
    assert "nothing is left" in capsys.readouterr().out
    assert_holds(registry.address, spec.id, range(1, 21), "interrupted")


def test_sync_leaves_a_file_in_use_to_its_owner(registry, start_run, tmp_path, capsys):
    run = start_run("grpc://127.0.0.1:1", spec_of("faults").id)
    run.say("[1]")
    assert main(["sync", "--spool", str(tmp_path / "spool"), "--registry", registry.address]) == 0
    assert "in use" in capsys.readouterr().out
    assert len(list((tmp_path / "spool").glob("*.spool"))) == 1


def test_the_next_run_takes_along_what_a_dead_one_left(registry, start_run, tmp_path):
    left, fresh = spec_of("faults"), spec_of("faults")
    dead = start_run(registry.address, left.id)
    dead.say("[1, 2]")
    kill(dead.uploader)
    dead.process.kill()
    dead.process.wait()
    run = start_run(registry.address, fresh.id)
    run.say("[1]")
    until(lambda: rows_at(registry.address, left.id) == 2, "what was left did not arrive")
    assert run.say("finish") == "0"
    until(lambda: spool_files(tmp_path / "spool") == [], "something stayed in the spool")
    assert_holds(registry.address, left.id, [1, 2], "interrupted")


def test_a_registry_that_is_down_costs_the_run_the_flush_time_and_one_sentence(tmp_path):
    reporter = SpoolReporter.open(
        "grpc://127.0.0.1:1", spec_of("faults"), Attempt(), spool=tmp_path
    )
    reporter.append(row_of(1))
    begin = time.monotonic()
    delivery = reporter.finish(Ending(final_loss=0.5), timeout=1.0)
    assert 0.9 < time.monotonic() - begin < 10.0, "it would try for ever"
    uploader = ProcessOwner.of(reporter._uploader.pid)
    kill(uploader)
    reporter._uploader.wait()
    assert delivery.left == 1
    assert (
        delivery.problem.startswith("1 of 1 measurements of recording")
        and "flerm sync --spool" in delivery.problem
    )


def test_what_the_registry_refuses_for_good_is_set_aside_and_the_rest_delivered(registry, tmp_path):
    spec = spec_of("faults")
    reporter = SpoolReporter.open(registry.address, spec, Attempt(), spool=tmp_path)
    reporter.append(row_of(1))
    reporter.append(Measurement(step=2, values=np.array([1.0, np.inf, 1.0], np.float32)))
    reporter.append(row_of(3))
    delivery = reporter.finish(Ending(final_loss=0.5), timeout=SECONDS)
    assert delivery.left == 1
    assert "step 2" in delivery.problem and "quarantine" in delivery.problem
    assert_holds(registry.address, spec.id, [1, 3])
    (kept,) = (tmp_path / "quarantine").glob("*.spool")
    assert "step 2" in kept.with_suffix(".why").read_text()


def test_a_recording_that_is_refused_does_not_disturb_the_run(registry, tmp_path):
    first = spec_of("faults")
    with SpoolReporter.open(registry.address, first, Attempt(), spool=tmp_path) as reporter:
        assert reporter.finish(Ending(final_loss=0.5), timeout=SECONDS).left == 0
    other = spec_of("faults", id=first.id, seed=first.seed + 1)  # the same id with other content
    reporter = SpoolReporter.open(registry.address, other, Attempt(), spool=tmp_path)
    for step in range(1, 11):
        reporter.append(row_of(step))
    delivery = reporter.finish(Ending(final_loss=0.5), timeout=SECONDS)
    assert delivery.left == 10
    assert first.id in delivery.problem and "refused" in delivery.problem


def test_a_loss_that_is_no_number_does_not_cost_the_measurement(registry, tmp_path):
    spec = spec_of("faults")
    with SpoolReporter.open(registry.address, spec, Attempt(), spool=tmp_path) as reporter:
        reporter.append(Measurement(step=1, values=row_of(1).values, loss=float("nan")))
        assert reporter.finish(Ending(status="diverged"), timeout=SECONDS).left == 0
    with RegistryClient(registry.address) as client:
        assert np.isnan(client.trajectory(spec.id).losses[0])
        assert client.recording(spec.id).status == "diverged"


def test_a_resumed_run_owns_the_steps_from_where_it_resumed(registry, tmp_path):
    spec = spec_of("faults")
    for attempt, steps in ((Attempt(), [1, 2, 3]), (Attempt(resume_at=3), [3, 4])):
        with SpoolReporter.open(registry.address, spec, attempt, spool=tmp_path) as reporter:
            for step in steps:
                reporter.append(row_of(step))
            assert reporter.finish(Ending(final_loss=0.5), timeout=SECONDS).left == 0
    assert_holds(registry.address, spec.id, [1, 2, 3, 4])


def test_the_token_is_not_on_the_command_line_and_the_session_is_its_own(tmp_path):
    reporter = SpoolReporter.open(
        "grpc://127.0.0.1:1", spec_of("faults"), Attempt(), token="very-secret", spool=tmp_path
    )
    pid = reporter._uploader.pid
    assert b"very-secret" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    until(
        lambda: b"flerm_client.upload.worker" in Path(f"/proc/{pid}/cmdline").read_bytes(),
        "no uploader",
    )
    assert os.getsid(pid) == pid
    reporter.close()
    kill(ProcessOwner.of(pid))
    reporter._uploader.wait()


def test_a_forked_child_neither_writes_nor_ends_the_run(registry, tmp_path):
    spec = spec_of("faults")
    reporter = SpoolReporter.open(registry.address, spec, Attempt(), spool=tmp_path)
    reporter.append(row_of(1))
    child = os.fork()
    if child == 0:
        reporter.append(row_of(2))
        reporter.finish(Ending())
        reporter.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    reporter.append(row_of(3))
    assert reporter.finish(Ending(final_loss=0.5), timeout=SECONDS).left == 0
    assert_holds(registry.address, spec.id, [1, 3])


def test_a_damaged_file_delivers_what_is_sound_and_is_set_aside(registry, tmp_path, capsys):
    from flerm_client.spool import SpoolReader

    spec = spec_of("faults")
    path = write_run(tmp_path, spec, [1, 2, 3], registry=registry.address)
    ends = [frame.end for frame in SpoolReader(path)]
    whole = bytearray(path.read_bytes())
    whole[ends[3] - 1] ^= 0xFF
    path.write_bytes(bytes(whole))
    assert main(["sync", "--spool", str(tmp_path)]) == 5
    assert "damaged bytes" in capsys.readouterr().out
    assert_holds(registry.address, spec.id, [1, 3])
    assert len(list((tmp_path / "quarantine").glob("*.spool"))) == 1
