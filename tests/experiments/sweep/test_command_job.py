"""Runs of a user's command: told by their environment, judged by the registry, ended as a group."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from forked import fork

from flerm_core.errors import InvalidInput, NotFound
from flerm_experiments.sweep.command import Objective
from flerm_experiments.sweep.command_executor import CommandExecutor
from flerm_experiments.sweep.command_job import run_command
from flerm_experiments.sweep.registry_state import finished_trials
from flerm_experiments.sweep.results import curve_rows
from flerm_experiments.sweep.runner import run_sweep
from flerm_experiments.sweep.spec import load
from flerm_experiments.sweep.trials import Trial, job_of
from tests.experiments.sweep.command_scripts import played, recordings, trained

SWEEPING = """
import signal, sys
from flerm_experiments.sweep.command_job import run_command
from flerm_experiments.sweep.spec import load
from flerm_experiments.sweep.trials import Trial, job_of
signal.signal(signal.SIGTERM, signal.default_int_handler)
run_command(job_of(load(sys.argv[1]), Trial(None, 0, 0), sys.argv[2]))
"""
"""A sweep of one run: its arguments are the sweep file and the registry's address."""


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TRAINED", str(tmp_path / "trained"))
    return f"file://{tmp_path}/registry"


def carried_out(path: Path, address: str) -> dict[Trial, str]:
    sweep = load(str(path))
    assert sweep.command is not None
    return run_sweep(sweep, address, CommandExecutor(sweep.command.limits)).failures


def test_a_sweep_of_a_script_finds_its_optimum_and_trains_nothing_twice(
    tmp_path: Path, address: str
) -> None:
    path = played(tmp_path, variants='["matched"]')
    assert carried_out(path, address) == {}
    sweep = load(str(path))
    base, matched = curve_rows(sweep, finished_trials(sweep, address))
    assert base.optimum == pytest.approx(2.0**-6.3, rel=1e-6)
    assert (base.runs, matched.runs) == (4, 3)
    assert matched.shift.octaves == pytest.approx(0.0, abs=1e-6)
    for each in recordings(address, variant="matched"):
        (source,) = recordings(address, role="base", lr_min=each.spec.lr, lr_max=each.spec.lr)
        assert each.spec.config["sources"] == [source.spec.id]
        assert each.spec.config["width"] == 32
    before = trained(tmp_path)
    assert len(before) == len(set(before)) == 7
    assert carried_out(path, address) == {}
    assert trained(tmp_path) == before


def test_a_run_that_fails_is_told_with_its_last_line_and_retried_as_often_as_said(
    tmp_path: Path, address: str
) -> None:
    path = played(
        tmp_path, options="--fail given.width==32", table="[run]\nretries = 1\n", rates="[0.01]"
    )
    failures = carried_out(path, address)
    assert {trial.cell.variant for trial in failures if trial.cell} == {"plain", "matched"}
    reason = next(iter(failures.values()))
    assert "exit code 3; the last line of" in reason
    assert reason.endswith("is: out of memory")
    wide = [line for line in trained(tmp_path) if line.endswith("32")]
    assert all(wide.count(line) == 2 for line in wide)


def test_a_command_that_records_nothing_is_told(tmp_path: Path, address: str) -> None:
    path = tmp_path / "silent.toml"
    path.write_text(
        f'command = "{sys.executable} -c pass {{lr}} {{seed}} {{n}}"\ninitial_lr = 0.1\n'
        "[base]\nn = 1\n[target]\nn = 2\n"
    )
    failures = carried_out(path, address)
    assert len(failures) == 3, "the second seed waits for the first"
    assert all("does the script call FLeRM.auto?" in why for why in failures.values())
    path.write_text(path.read_text().replace(sys.executable, "/no/such/python"))
    assert "cannot be started (No such file" in next(iter(carried_out(path, address).values()))


@pytest.mark.parametrize(
    ("table", "factor"),
    [
        ('[objective]\nline = "step 2 loss (.*)"\n', 1.0),
        pytest.param(
            '[objective]\nfile = "{folder}/out.json"\nkey = "eval.loss"\n',
            2.0,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_loss_may_stand_in_a_line_or_in_a_json_file(
    tmp_path: Path, address: str, table: str, factor: float
) -> None:
    path = played(tmp_path, options="--out {folder}/out.json", table=table, rates="[0.01]")
    assert carried_out(path, address) == {}
    (base,) = recordings(address, role="base")
    parabola = (-6.643856189774724 + 6.3) ** 2 + 1 / 8
    assert base.final_loss == pytest.approx(factor * parabola)
    assert (base.rows, base.status) == (1, "completed")
    before = trained(tmp_path)
    assert carried_out(path, address) == {}
    assert trained(tmp_path) == before


def test_a_run_that_was_not_judged_yet_is_judged_and_not_trained_again(
    tmp_path: Path, address: str
) -> None:
    path = played(tmp_path, table='[objective]\nline = "step 2 loss (.*)"\n')
    sweep = load(str(path))
    job = job_of(sweep, Trial(None, 0, 0), address)
    job.folder.mkdir(parents=True)
    with job.output.open("wb") as output:  # as a killed sweep leaves the run
        subprocess.run(
            job.words, cwd=job.directory, env=job.environment(), stdout=output, check=True
        )
    assert finished_trials(sweep, address) == {}
    assert run_command(job).loss == pytest.approx(0.7**2 + 1 / 8)
    assert len(trained(tmp_path)) == 1
    assert list(finished_trials(sweep, address)) == [Trial(None, 0, 0)]


FIRST_FAILS = """
import os, sys
if not os.path.exists("again"):
    open("again", "w").close()
    print("loss 0.25")
    sys.exit(3)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def test_the_loss_is_not_that_of_an_attempt_before(tmp_path: Path, address: str) -> None:
    table = '[objective]\nline = "^loss (.*)"\n[run]\nretries = 1\n'
    path = played(tmp_path, table=table, rates="[0.01]")
    (tmp_path / "first_fails.py").write_text(FIRST_FAILS)
    path.write_text(path.read_text().replace("train.py", "first_fails.py train.py"))
    failures = carried_out(path, address)
    assert "no line of" in failures[Trial(None, 0, 0)]
    folder = job_of(load(str(path)), Trial(None, 0, 0), address).folder
    assert (folder / "output-1.log").read_text() == "loss 0.25\n"
    assert "step 2 loss" in (folder / "output.log").read_text()


@pytest.mark.parametrize(
    ("content", "loss"),
    [
        ('{"loss": 2.5}\n{"loss": 1.5}\n{"step": 3}\n', 1.5),
        ('{"loss": 2.5}\n{"loss": NaN}\n', math.inf),
        ('{"loss": 2.5}\n{"loss": null}\n', None),  # as some writers of JSON put NaN
        ('{"loss": null}', None),
        ('{"step": 3}', None),
    ],
)
def test_the_last_loss_of_a_file_counts_even_if_it_is_none(
    tmp_path: Path, content: str, loss: float | None
) -> None:
    (tmp_path / "out.json").write_text(content)
    objective = Objective(file="{folder}/out.json", key="loss")
    if loss is None:
        with pytest.raises(NotFound, match=r"is no number|has no loss"):
            objective.read(tmp_path / "output.log", {"folder": str(tmp_path)})
    else:
        assert objective.read(tmp_path / "output.log", {"folder": str(tmp_path)}) == loss


SLEEPS = """
import os, signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with open(sys.argv[1] + "/pids", "w") as pids:
    pids.write(f"{os.getpid()} {child.pid}")
time.sleep(600)
"""


def sleeping(tmp_path: Path, limit: str = "") -> Path:
    (tmp_path / "sleep.py").write_text(SLEEPS)
    path = tmp_path / "sleeping.toml"
    path.write_text(
        f'command = "{sys.executable} sleep.py {{folder}} {{lr}} {{seed}} {{n}}"\nrates=[0.1]\n'
        f"base_seeds = 1\n[base]\nn = 1\n[target]\nn = 2\n{limit}"
    )
    return path


def pids_of(tmp_path: Path) -> list[int]:
    (found,) = tmp_path.glob("flerm-runs/*/*/pids")
    return [int(each) for each in found.read_text().split()]


def wait_until(what) -> None:
    until = time.monotonic() + 60
    while not what():
        assert time.monotonic() < until
        time.sleep(0.05)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_time_limit_ends_the_whole_process_group(tmp_path: Path, address: str) -> None:
    path = sleeping(tmp_path, '[run]\ntime_limit = "1s"\n')
    failures = carried_out(path, address)
    assert "ran longer than its time limit of 1 s" in failures[Trial(None, 0, 0)]
    wait_until(lambda: not any(map(running, pids_of(tmp_path))))


def test_a_stopped_sweep_leaves_no_process_behind(tmp_path: Path, address: str) -> None:
    sweep = load(str(sleeping(tmp_path)))
    executor = CommandExecutor(sweep.command.limits)
    future = executor.submit(job_of(sweep, Trial(None, 0, 0), address))
    wait_until(lambda: list(tmp_path.glob("flerm-runs/*/*/pids")))
    wait_until(lambda: pids_of(tmp_path))
    executor.close()
    assert isinstance(future.exception(), KeyboardInterrupt)
    wait_until(lambda: not any(map(running, pids_of(tmp_path))))


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_to_the_command_ends_all_its_runs(
    tmp_path: Path, address: str, number: signal.Signals
) -> None:
    path = sleeping(tmp_path)
    sweeping = tmp_path / "sweeping.py"
    sweeping.write_text(
        "import signal, sys\nfrom flerm_experiments.cli.sweep import sweep\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "try:\n    sweep(sys.argv[1], registry=sys.argv[2])\n"
        "except KeyboardInterrupt:\n    sys.exit(130)\n"
    )
    running_sweep = fork(sweeping, str(path), address, environments=[{}])
    wait_until(lambda: list(tmp_path.glob("flerm-runs/*/*/pids")))
    wait_until(lambda: pids_of(tmp_path))
    os.kill(running_sweep.pids[0], number)
    assert running_sweep.wait(60) == [130]
    wait_until(lambda: not any(map(running, pids_of(tmp_path))))


def test_a_run_that_a_killed_sweep_left_behind_is_waited_for_and_not_started_again(
    tmp_path: Path, address: str
) -> None:
    path = played(tmp_path, options="")
    script = tmp_path / "train.py"
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    script.write_text(f"open({str(gate)!r}).read()\n" + script.read_text())
    sweep = load(str(path))
    job = job_of(sweep, Trial(None, 0, 0), address)
    sweeping = tmp_path / "sweeping.py"
    sweeping.write_text(SWEEPING)
    killed = fork(sweeping, str(path), address, environments=[{}])
    lock = job.folder / "lock"
    wait_until(lambda: lock.exists() and lock.read_text())
    os.kill(killed.pids[0], signal.SIGKILL)
    killed.wait(30)
    outcome: list[float] = []
    again = threading.Thread(target=lambda: outcome.append(run_command(job).loss), daemon=True)
    again.start()
    gate.write_text("go on")
    again.join(60)
    assert outcome == [pytest.approx(0.7**2 + 1 / 8)]
    assert len(trained(tmp_path)) == 1


@pytest.mark.parametrize("its_sweep", ["watches", "was killed"])
def test_a_stopped_sweep_ends_the_run_of_another_only_where_that_one_was_killed(
    tmp_path: Path, address: str, its_sweep: str
) -> None:
    path = sleeping(tmp_path)
    job = job_of(load(str(path)), Trial(None, 0, 0), address)
    sweeping = tmp_path / "sweeping.py"
    sweeping.write_text(SWEEPING)
    other = fork(sweeping, str(path), address, environments=[{}])
    wait_until(lambda: list(tmp_path.glob("flerm-runs/*/*/pids")))
    wait_until(lambda: pids_of(tmp_path))
    if its_sweep == "was killed":
        os.kill(other.pids[0], signal.SIGKILL)
        other.wait(30)
    looks = iter([False, False])
    with pytest.raises(KeyboardInterrupt):
        run_command(job, stopped=lambda: next(looks, True))
    if its_sweep == "was killed":
        wait_until(lambda: not any(map(running, pids_of(tmp_path))))
    else:
        assert all(map(running, pids_of(tmp_path)))
        os.kill(other.pids[0], signal.SIGTERM)
        other.wait(60)
        wait_until(lambda: not any(map(running, pids_of(tmp_path))))


def test_every_slot_has_gpus_of_its_own(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2,5,7,9")
    path = played(tmp_path, table="[run]\ngpus = 2\n", rates="[0.01, 0.02]", variants="[]")
    script = tmp_path / "train.py"
    script.write_text(
        "import os\nprint('on', os.environ['CUDA_VISIBLE_DEVICES'])\n" + script.read_text()
    )
    assert CommandExecutor(load(str(path)).command.limits).slots == 2
    assert carried_out(path, address) == {}
    printed = {log.read_text().splitlines()[0] for log in tmp_path.glob("flerm-runs/*/*/*.log")}
    assert printed == {"on 0,2", "on 5,7"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(InvalidInput, match=r"run\.gpus is 2, but there are 1 GPUs"):
        CommandExecutor(load(str(path)).command.limits)


def test_what_a_signal_ended_is_named(tmp_path: Path, address: str) -> None:
    path = played(tmp_path, options="--fail os.kill(os.getpid(),9)", rates="[0.01]")
    why = next(iter(carried_out(path, address).values()))
    assert f"was killed by {signal.SIGKILL.name}" in why
