"""DDP: every rank measures its own probe batch, one all-reduce joins them, all ranks apply the same rates."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from flerm_core.measure.estimator import Subject
from flerm_core.measure.meter import Meter, make_estimator
from flerm_core.measure.ranks import Ranks

from ..measure import models
from ..measure.reference import at_old, exact_fslr, random_update
from ..measure.runs import same
from .launch import torchrun

RANKS = [2, pytest.param(4, marks=pytest.mark.slow)]


class Pretended(Ranks):
    """One process that draws what rank `rank` of many would draw."""

    def __init__(self, rank: int) -> None:
        super().__init__(alone=True)
        self.rank = rank


def reading(estimator: str, rank: int) -> dict[str, float]:
    case = models.build("embedding")
    update, _ = random_update(case.model)
    subject = Subject(case.model, dict(case.model.named_parameters()), lambda model, batch: model(batch))
    meter = Meter(subject, make_estimator(estimator, subject), Pretended(rank), seed=4)
    return meter.measure(update, itertools.repeat(case.batch(rank)), 1)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("estimator", ["example", "exact"])
def test_ranks_together_measure_what_one_process_does_on_the_union(estimator: str, ranks: int, tmp_path: Path) -> None:
    together = torchrun(ranks, "ddp_measure.py", estimator, "1", folder=tmp_path)
    assert together.code == 0, together.output
    apart = [reading(estimator, rank) for rank in range(ranks)]
    for result in together.ranks:
        assert result == together.ranks[0]
        for name, value in result[0].items():
            union = np.sqrt(np.mean([one[name] ** 2 for one in apart]))  # batches of one size
            assert value == pytest.approx(union, rel=1e-10), name


@pytest.mark.parametrize("estimator", ["example", "full"])
def test_no_bias_at_equal_samples(estimator: str, tmp_path: Path) -> None:
    """Averaged gradients would shrink the estimate to 1/√W of the exact value."""
    draws = 150 if estimator == "example" else 300
    result = torchrun(2, "ddp_measure.py", estimator, str(draws), folder=tmp_path)
    assert result.code == 0, result.output
    case = models.build("embedding")
    _, changes = random_update(case.model)
    exact = exact_fslr(at_old(case.model, changes), changes, [case.batch(0), case.batch(1)])
    for name, value in exact.items():
        samples = np.array([one[name] for one in result.ranks[0]]) ** 2
        assert abs(samples.mean() - value**2) < 4.0 * samples.std() / np.sqrt(draws), name


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("every", [100, 2])
def test_multipliers_and_weights_are_the_same_bits_on_every_rank(ranks: int, every: int, tmp_path: Path) -> None:
    result = torchrun(ranks, "ddp_match.py", str(every), folder=tmp_path)
    assert result.code == 0, result.output
    assert len(result.ranks) == ranks
    assert any(m != 1.0 for m in result.ranks[0]["multipliers"].values())
    assert all(same(each, result.ranks[0]) for each in result.ranks)


def test_a_recording_leaves_no_trace_on_any_rank(tmp_path: Path) -> None:
    result = torchrun(2, "ddp_no_trace.py", folder=tmp_path)
    assert result.code == 0, result.output
    assert result.ranks == [True, True]


@pytest.mark.parametrize("estimator", ["example", "kronecker"])
def test_a_rank_that_fails_makes_all_raise_the_same_sentence(estimator: str, tmp_path: Path) -> None:
    result = torchrun(2, "ddp_failing_rank.py", estimator, folder=tmp_path)
    assert len(result.ranks) == 2, result.output
    assert result.ranks[0] == result.ranks[1]
    assert result.ranks[0][1].startswith("rank 1: RuntimeError: mat1 and mat2 shapes cannot be multiplied")
