"""DDP: each rank measures its own probe batch, and all apply the same rates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import measured_models as models
import numpy as np
import pytest
import torch
from exact_reference import at_old, exact_fslr, random_update
from measured_runs import fresh, loss_of, same, trained
from torch.optim import SGD

from flerm_client import FLeRM
from flerm_core.measure.estimators.registry import make_estimator
from flerm_core.measure.fslr_meter import FSLRMeter
from flerm_core.measure.measured_model import MeasuredModel
from flerm_core.records.recording import ESTIMATORS

from .launch import on_ranks
from .sharded import single_process_as

DRAWS = 150


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    result = on_ranks(
        request.param, "ddp_measure.py", str(DRAWS), folder=tmp_path_factory.mktemp("measure")
    )
    assert result.code == 0, result.output
    assert all(rank[key] == result.ranks[0][key] for rank in result.ranks for key in rank)
    return result.ranks


def alone(
    estimator: str, rank: int, examples: int = 9, measurement: int = 0
) -> tuple[dict[str, float], int]:
    """What one process measures that draws what rank `rank` does, and on how many examples."""
    case = models.build("embedding")
    update, _ = random_update(case.model)
    measured_model = MeasuredModel(
        case.model, dict(case.model.named_parameters()), lambda model, batch: model(batch)
    )
    meter = FSLRMeter(
        measured_model, make_estimator(estimator, measured_model), single_process_as(rank), seed=4
    )
    meter.measurements = measurement
    return meter.measure(update, iter([case.batch(rank)[:examples]]), 1), examples


def union(readings: list[tuple[dict[str, float], int]]) -> dict[str, float]:
    """Of estimators that are a root of a mean over outputs."""
    total = sum(examples for _, examples in readings)
    return {
        name: np.sqrt(sum(one[name] ** 2 * n for one, n in readings) / total)
        for name in readings[0][0]
    }


@pytest.mark.parametrize("estimator", ["example", "exact"])
def test_ranks_together_measure_what_one_process_does_on_the_union(
    ranks: list[Any], estimator: str
) -> None:
    expected = union([alone(estimator, rank) for rank in range(len(ranks))])
    assert ranks[0]["even", estimator] == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("estimator", ["example", "full", "exact"])
def test_uneven_batches_count_by_their_outputs(ranks: list[Any], estimator: str) -> None:
    if len(ranks) > 2:
        pytest.skip("the fourth rank would have none")
    expected = union([alone(estimator, rank, 9 - 3 * rank) for rank in range(len(ranks))])
    assert ranks[0]["uneven", estimator] == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_rank_without_examples_counts_nothing_and_joins_in_when_it_has_some(
    ranks: list[Any], estimator: str
) -> None:
    assert ranks[0]["empty", estimator] == pytest.approx(alone(estimator, 0)[0], rel=1e-10)
    if estimator in (
        "full",
        "exact",
    ):  # `example` settles anew on what it lacks, and so draws otherwise
        expected = union([alone(estimator, rank, measurement=1) for rank in range(len(ranks))])
        assert ranks[0]["after empty", estimator] == pytest.approx(expected, rel=1e-10)
    assert set(ranks[0]["after empty", estimator]) == set(ranks[0]["empty", estimator])


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_without_any_examples_every_rank_says_so(ranks: list[Any], estimator: str) -> None:
    assert ranks[0]["all empty", estimator].startswith("every probe batch")


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_measurement_is_one_all_reduce_of_a_number_a_column(
    ranks: list[Any], estimator: str
) -> None:
    lengths, columns, gradients = ranks[0]["bytes", estimator]
    tensors = dict(models.build("embedding").model.named_parameters())
    assert columns == (
        sum(p.ndim + 1 for p in tensors.values())
        if estimator in ("kronecker", "iid")
        else len(tensors)
    )
    assert len(lengths) == 1
    assert lengths[0] <= 8 * columns + 64
    assert lengths[0] < gradients


def test_the_ranks_of_ddps_own_process_group_measure_together(ranks: list[Any]) -> None:
    assert ranks[0]["own group"] == pytest.approx(alone("example", 0)[0], rel=1e-10)


def test_a_step_inside_join_is_refused(ranks: list[Any]) -> None:
    assert ranks[0]["join"].startswith("a step inside ddp.join() cannot be measured")


@pytest.mark.parametrize("estimator", ["example", "full"])
def test_no_bias_at_equal_samples(ranks: list[Any], estimator: str) -> None:
    """Averaged gradients would shrink the estimate to 1/√W of the exact value."""
    case = models.build("embedding")
    _, changes = random_update(case.model)
    exact = exact_fslr(
        at_old(case.model, changes), changes, [case.batch(rank) for rank in range(len(ranks))]
    )
    for name, value in exact.items():
        samples = np.array([one[name] for one in ranks[0]["draws", estimator]]) ** 2
        assert abs(samples.mean() - value**2) < 4.0 * samples.std() / np.sqrt(len(samples)), name


def test_the_variance_falls_with_the_number_of_ranks(ranks: list[Any]) -> None:
    case = models.build("embedding")
    update, _ = random_update(case.model)
    measured_model = MeasuredModel(
        case.model, dict(case.model.named_parameters()), lambda model, batch: model(batch)
    )
    meter = FSLRMeter(
        measured_model, make_estimator("example", measured_model), single_process_as(0), seed=11
    )
    one = [meter.measure(update, iter([case.batch(0)]), 1) for _ in range(DRAWS)]
    many = ranks[0]["draws", "example"]
    ratios = [
        np.var([each[name] ** 2 for each in many]) / np.var([each[name] ** 2 for each in one])
        for name in one[0]
    ]
    assert np.exp(np.mean(np.log(ratios))) == pytest.approx(1 / len(ranks), rel=0.35)


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_multipliers_and_weights_are_the_same_bits_on_every_rank(
    count: int, tmp_path: Path
) -> None:
    result = on_ranks(count, "ddp_match.py", folder=tmp_path)
    assert result.code == 0, result.output
    assert len(result.ranks) == count
    assert all(
        any(m != 1.0 for m in run["multipliers"].values()) for run in result.ranks[0].values()
    )
    assert all(same(each, result.ranks[0]) for each in result.ranks)


def test_by_tokens_every_rank_goes_by_what_rank_0_logs(tmp_path: Path) -> None:
    result = on_ranks(2, "ddp_clock.py", folder=tmp_path)
    assert result.code == 0, result.output
    first, second = result.ranks
    assert same(first, second)
    assert same(first[None], first[7]), "what the other rank logs is no matter"
    assert first[None]["aimed"] == pytest.approx([2**0.25, 2, 2**1.75, 4], rel=1e-12)
    assert first[None]["told"].startswith(
        "clock='tokens': step 3 is to be matched and no tokens were logged for it"
    )


def test_a_recording_leaves_no_trace_on_any_rank_whatever_ddps_options(tmp_path: Path) -> None:
    result = on_ranks(2, "ddp_no_trace.py", folder=tmp_path)
    assert result.code == 0, result.output
    assert [rank for rank in result.ranks if not all(rank["same"].values())] == []
    assert len(result.ranks) == 2
    # Sharpness is that of the lead's batch, on every rank.
    assert result.ranks[0]["sharpness"].tolist() == result.ranks[1]["sharpness"].tolist()
    model, _ = fresh("resmlp")
    optimizer = SGD(model.parameters(), 1e-2)
    options: dict[str, Any] = {
        "probe": (torch.randn(8, 8) for _ in iter(int, 1)),
        "family": "f",
        "warmup": 2,
    }
    flerm = FLeRM.record(
        model, optimizer, sharpness=lambda model, batch: loss_of(model(batch)), **options
    )
    trained(model, optimizer, [torch.ones(8, 8)])
    assert result.ranks[0]["sharpness"][0] == pytest.approx(flerm.sharpness, rel=1e-5)
