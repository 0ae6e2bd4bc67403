"""`example` and `full` are unbiased, `exact` is exact, whatever modules hold the parameters."""

from __future__ import annotations

import itertools

import measured_models as models
import numpy as np
import pytest
import torch
from exact_reference import at_old, exact_fslr, random_update

from flerm_core.measure.distributed.ranks import MeasurementRanks
from flerm_core.measure.estimators.registry import make_estimator
from flerm_core.measure.fslr_meter import FSLRMeter
from flerm_core.measure.measured_model import MeasuredModel


def squares(
    estimator: str, case: models.Case, update, batches, draws: int
) -> dict[str, np.ndarray]:
    """FSLR² of `draws` single draws on the same batches, cycled."""
    parameters = dict(case.model.named_parameters())
    measured_model = MeasuredModel(case.model, parameters, lambda model, batch: model(batch))
    meter = FSLRMeter(measured_model, make_estimator(estimator, measured_model), MeasurementRanks())
    cycle = itertools.cycle(batches)
    readings = [meter.measure(update, cycle, 1) for _ in range(draws)]
    return {name: np.array([reading[name] for reading in readings]) ** 2 for name in parameters}


MANY = [pytest.param(*each, marks=pytest.mark.slow) for each in (("example", 200), ("full", 600))]


@pytest.mark.parametrize(("estimator", "draws"), [("example", 60), ("full", 150), *MANY])
@pytest.mark.parametrize("name", models.CASES)
def test_mean_of_squares_is_the_exact_one_within_four_standard_errors(
    name: str, estimator: str, draws: int
) -> None:
    case = models.build(name)
    update, changes = random_update(case.model)
    batch = case.batch(1)
    exact = exact_fslr(at_old(case.model, changes), changes, [batch])
    for tensor, samples in squares(estimator, case, update, [batch], draws).items():
        error = abs(samples.mean() - exact[tensor] ** 2)
        assert error < 4.0 * samples.std() / np.sqrt(draws) + 1e-20, (
            f"{tensor}: {samples.mean() ** 0.5} against {exact[tensor]}"
        )


@pytest.mark.parametrize(("estimator", "error"), [("exact", 1e-9)])
@pytest.mark.parametrize("name", models.CASES)
def test_an_estimator_without_random_numbers_equals_forward_mode(
    name: str, estimator: str, error: float
) -> None:
    case = models.build(name)
    update, changes = random_update(case.model)
    batches = [case.batch(seed) for seed in range(3)]
    measured_model = MeasuredModel(
        case.model, dict(case.model.named_parameters()), lambda model, batch: model(batch)
    )
    measured = FSLRMeter(
        measured_model, make_estimator(estimator, measured_model), MeasurementRanks()
    ).measure(update, iter(batches), 3)
    assert measured == pytest.approx(
        exact_fslr(at_old(case.model, changes), changes, batches), rel=error, abs=1e-12
    )


def test_one_draw_of_example_is_a_sample_per_example() -> None:
    case = models.build("mlp")
    update, _ = random_update(case.model)
    batch = case.batch(1)
    example = squares("example", case, update, [batch], 200)
    full = squares("full", case, update, [batch], 200)
    ratio = np.median([example[t].var() / full[t].var() for t in example])
    assert ratio < 3.0 / len(batch)


def test_kronecker_has_only_the_methods_own_bias() -> None:
    case = models.build("mlp")
    update, changes = random_update(case.model)
    batch = case.batch(1)
    exact = exact_fslr(at_old(case.model, changes), changes, [batch])
    measured_model = MeasuredModel(
        case.model, dict(case.model.named_parameters()), lambda model, batch: model(batch)
    )
    meter = FSLRMeter(
        measured_model, make_estimator("kronecker", measured_model), MeasurementRanks()
    )
    measured = meter.measure(update, itertools.repeat(batch), 400)
    assert abs(np.median([measured[t] / exact[t] for t in exact]) - 1.0) < 0.15


def test_kronecker_is_unbiased_for_a_named_output_layer() -> None:
    case = models.build("mlp")
    update, changes = random_update(case.model)
    batch = case.batch(1)
    exact = exact_fslr(at_old(case.model, changes), changes, [batch])
    measured_model = MeasuredModel(
        case.model, dict(case.model.named_parameters()), lambda model, batch: model(batch)
    )
    estimator = make_estimator(
        "kronecker", measured_model, output_weight="5.weight", output_bias="5.bias"
    )
    measured = FSLRMeter(measured_model, estimator, MeasurementRanks()).measure(
        update, itertools.repeat(batch), 600
    )
    for name in ("5.weight", "5.bias"):
        assert measured[name] == pytest.approx(exact[name], rel=0.08)


def test_a_depth_group_is_the_joint_change_of_its_tensors() -> None:
    case = models.build("embedding")
    update, changes = random_update(case.model)
    batch = case.batch(1)
    groups = {"both": ("mix.weight", "mix.bias")}
    readings = {}
    for name, draws in (("exact", 1), ("example", 400)):
        measured_model = MeasuredModel(
            case.model,
            dict(case.model.named_parameters()),
            lambda model, batch: model(batch),
            groups,
        )
        readings[name] = FSLRMeter(
            measured_model, make_estimator(name, measured_model), MeasurementRanks()
        ).measure(update, itertools.repeat(batch), draws)
    old = at_old(case.model, changes)
    with torch.no_grad():
        step = 1e-6
        before = old(batch)
        for member in groups["both"]:
            old.get_parameter(member).add_(changes[member], alpha=step)
        joint = ((old(batch) - before) / step).square().mean().sqrt().item()
    assert readings["exact"]["both"] == pytest.approx(joint, rel=1e-4)
    assert readings["example"]["both"] == pytest.approx(joint, rel=0.1)
