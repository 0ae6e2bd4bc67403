"""A sweep's further dimensions are tuned on the base by Optuna, and the registry is the memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest

from flerm_client.registry.client import RegistryClient
from flerm_core.errors import FlermError
from flerm_experiments.sweep.command_job import CommandJob
from flerm_experiments.sweep.executors import Executor
from flerm_experiments.sweep.job_outcome import JobOutcome
from flerm_experiments.sweep.sampler_search import SearchAnswer, search_base
from flerm_experiments.sweep.spec import Sweep, parse
from flerm_experiments.sweep.trials import AnyJob

Loss = Callable[[CommandJob], float]


def parabola(job: CommandJob) -> float:
    """Lowest, 0, at lr 2^-6, decay 0.3, kind a and 4 layers."""
    values = job.instructions.config
    assert job.instructions.lr is not None
    return (
        (math.log2(float(job.instructions.lr)) + 6) ** 2
        + 4 * abs(math.log10(values["decay"] / 0.3))
        + (values["kind"] == "b")
        + abs(values["layers"] - 4)
    )


class Recorder(Executor):
    """Records, in place of training, what the command would. Two slots, each done at once."""

    slots = 2

    def __init__(self, address: str, loss: Loss = parabola, most: int = 1000) -> None:
        """most: how many runs until the sweep is interrupted."""
        self.address, self.loss, self.most = address, loss, most
        self.jobs: list[CommandJob] = []

    def submit(self, job: AnyJob) -> Future[JobOutcome]:
        assert isinstance(job, CommandJob)
        if len(self.jobs) == self.most:
            raise KeyboardInterrupt
        self.jobs.append(job)
        future: Future[JobOutcome] = Future()
        try:
            loss = self.loss(job)
        except FlermError as error:
            future.set_exception(error)
            return future
        status = "completed" if math.isfinite(loss) else "diverged"
        told = job.instructions
        with RegistryClient(self.address) as registry:
            recording = registry.start_recording(
                told.family, float(told.lr), ["w"], [[2, 2]], seed=told.seed, tags=told.tags,
                config=told.config,
            )  # fmt: skip
            registry.append(recording, [1], [[1.0]], losses=[1.0])
            registry.finish(recording, status, final_loss=loss if status == "completed" else None)
        future.set_result(JobOutcome(status, loss, 1.0))
        return future

    def close(self) -> None:
        pass


def sweep(**changes: object) -> Sweep:
    space = {
        "trials": 30,
        "decay": {"low": 0.01, "high": 1.0, "log": True},
        "kind": ["a", "b"],
        "layers": {"low": 1, "high": 6},
    }
    content = {
        "command": "train --lr {lr} --width {width} {decay} {kind} {layers} {seed}",
        "initial_lr": 2.0**-8,
        "base": {"width": 8},
        "target": {"width": 64},
        "search": space | changes,
    }
    return parse(content, "mine")


def searched(given: Sweep, executor: Recorder) -> SearchAnswer:
    assert given.command is not None
    assert given.command.search is not None
    return search_base(given, given.command.search, executor.address, executor)


def test_the_search_nears_the_optimum_and_fixes_its_values_for_base_and_target(
    tmp_path: Path,
) -> None:
    executor = Recorder(f"file://{tmp_path}")
    found = searched(sweep(), executor)
    assert len(found.points) == len(executor.jobs) == 30
    assert len({job.key for job in executor.jobs}) == 30
    best = found.points[found.best]
    assert best.loss == min(map(parabola, executor.jobs)) < 2.5
    values = found.best.by_name
    assert found.sweep_of_best.command is not None
    assert dict(found.sweep_of_best.command.target) == {"width": 64, **values}
    assert dict(found.sweep_of_best.command.base) == {"width": 8, **values}
    assert found.sweep_of_best.initial_lr == sweep().lr_at(found.best.lr_index)
    assert found.sweep_of_best.command.search is None


def test_a_search_that_was_interrupted_goes_on_and_trains_nothing_twice(tmp_path: Path) -> None:
    address = f"file://{tmp_path}"
    first = Recorder(address, most=11)
    with pytest.raises(KeyboardInterrupt):
        searched(sweep(), first)
    second = Recorder(address)
    found = searched(sweep(), second)
    assert len(first.jobs) + len(second.jobs) == 30 == len(found.points)
    assert not {job.key for job in first.jobs} & {job.key for job in second.jobs}
    third = Recorder(address)
    assert searched(sweep(), third).best == found.best
    assert third.jobs == []


def test_an_exhausted_space_ends_before_its_number_of_trials(tmp_path: Path) -> None:
    given = parse(
        {
            "command": "train {lr} {width} {decay} {seed}",
            "rates": [0.1, 0.2],
            "base": {"width": 8},
            "target": {"width": 64},
            "search": {"decay": [0.1, 0.3]},
        },
        "mine",
    )
    executor = Recorder(f"file://{tmp_path}", loss=lambda job: float(job.instructions.lr or 0))
    found = searched(given, executor)
    assert len(found.points) == 4
    assert found.sweep_of_best.lr_at(found.best.lr_index) == 0.1


def test_runs_that_diverge_or_fail_count_and_are_not_the_best(tmp_path: Path) -> None:
    def loss(job: CommandJob) -> float:
        if job.instructions.config["kind"] == "b":
            raise FlermError("out of memory")
        return math.inf if job.instructions.config["layers"] > 4 else parabola(job)

    executor = Recorder(f"file://{tmp_path}", loss=loss)
    found = searched(sweep(trials=20), executor)
    assert len(found.points) + len(found.failures) == 20 == len(executor.jobs)
    assert found.failures
    assert set(found.failures.values()) == {"out of memory"}
    assert any(math.isinf(each.loss) for each in found.points.values())
    assert math.isfinite(found.points[found.best].loss)


def test_a_search_without_any_loss_says_so(tmp_path: Path) -> None:
    def loss(job: CommandJob) -> float:
        raise FlermError("out of memory")

    with pytest.raises(FlermError, match=r"none of 3 runs of the search .* loss: out of memory"):
        searched(sweep(trials=3), Recorder(f"file://{tmp_path}", loss=loss))
