"""The learning rates of a matched run, with the targets behind them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from flerm_core.errors import NotFound
from flerm_core.matching.matched_rates import MatchedRates, effective_fslrs, matched_rates
from flerm_core.matching.targets import build_targets
from flerm_core.matching.tensor_rate import medians
from flerm_core.records.auxiliary import AuxiliaryColumns
from flerm_core.records.queries import TargetQuery
from flerm_core.records.recording import ParameterList, Recording, RecordingSpec
from flerm_core.trajectory import Trajectory

NAMES = ("layers.0.q.weight", "layers.1.q.weight", "readout.weight", "layers.*.q.weight")
SHAPES = ((4, 4), (4, 4), (2, 4), ())
BANDS = ("query/key", "query/key", "readout", "query/key")
STEPS = (1, 101)
LR = 0.01
BASE = Recording(
    spec=RecordingSpec(family="f", lr=LR, parameters=ParameterList(NAMES, SHAPES, BANDS)),
    status="completed",
)
BASE_RUN = Trajectory(NAMES, SHAPES, STEPS, [[4, 8, 2, 9], [2, 4, 1, 5]], bands=BANDS)
NAN = math.nan


def load(_: object) -> Trajectory:
    return BASE_RUN


def rates(
    recording: Recording,
    trajectory: Trajectory,
    multipliers: np.ndarray,
    *base: Recording,
    scalars: dict[str, np.ndarray] | None = None,
) -> MatchedRates:
    """The rates of a run whose registry has the recordings `base`."""

    def find(recording_id: str) -> Recording:
        found = [each for each in base if each.spec.id == recording_id]
        if not found:
            raise NotFound(recording_id)
        return found[0]

    vectors = {"multiplier": np.asarray(multipliers, np.float32)}
    columns = AuxiliaryColumns(trajectory.steps, scalars or {}, vectors)
    return matched_rates(recording, trajectory, columns, find=find, load=load)


def digest(**more: str) -> str:
    query = TargetQuery(family="f", lr=LR, names=NAMES[:3], shapes=SHAPES[:3], **more)
    return build_targets(query, {LR: (BASE,)}, load).digest


def run(values, **spec) -> tuple[Recording, Trajectory]:
    fields = {"targets_digest": digest(), "targets_sources": (BASE.spec.id,)} | spec
    recording = replace(
        BASE,
        spec=replace(BASE.spec, id="run", role="scaled", variant="matched", **fields),
        final_step=200,
    )
    trajectory = Trajectory(NAMES, SHAPES, STEPS, values, bands=BANDS, learning_rates=[LR, LR / 2])
    return recording, trajectory


def vectors(*rows) -> np.ndarray:
    return np.array([(*row, NAN) for row in rows], np.float32)


def test_a_rate_is_the_schedules_times_target_over_measured_and_the_ratio_follows_the_base():
    recording, trajectory = run([[16, 4, 2, 9], [2, 4, 4, 9]])
    found = rates(recording, trajectory, vectors((0.25, 2, 1), (0.25, 2, 1)), BASE)
    assert found.parameters.names == NAMES[:3]
    assert found.targets.tolist() == [[4, 8, 2], [2, 4, 1]]
    assert found.rates.tolist() == [[0.0025, 0.02, 0.01], [0.00125, 0.01, 0.005]]
    assert found.ratios.tolist() == [[1, 1, 1], [0.25, 2, 4]]
    assert (found.depth, found.clock, found.missing) == ("coherent", "step", ())
    assert (found.match_step, found.notes) == (1, ("", "", ""))
    query, readout = medians(found.at(1))
    assert (query.name, query.count, query.target, query.multiplier) == ("query/key", 2, 6, 1.125)
    assert (readout.name, readout.rate, readout.ratio) == ("readout", 0.01, 1)


def test_a_run_of_another_batch_has_a_factor_in_every_multiplier_and_reaches_its_targets():
    """Its embedding was not matched, and has the factor alone."""
    factor = 2**0.5
    recording, trajectory = run([[16, 4, NAN, 9], [2, 4, 4, 9]])
    row = (0.25 * factor, 2 * factor, factor)
    scalars = {"batch_factor": np.array([NAN, factor])}
    found = rates(recording, trajectory, vectors(row, row), BASE, scalars=scalars)
    assert found.batch_factor == factor
    assert (found.depth, found.clock, found.match_step) == ("coherent", "step", 1)
    assert found.targets.tolist() == [[4, 8, 2], [2, 4, 1]]
    assert found.notes == ("", "", "unmeasured")
    assert found.ratios[0] == pytest.approx([1, 1, NAN], rel=1e-6, nan_ok=True)
    assert found.rates[0] == pytest.approx([LR * each for each in row])
    assert found.batch_words == (
        "Every multiplier has the factor 1.414, by which the run follows its own batch size and "
        "length; whether a target is reached is said without the factor."
    )


def test_the_depth_rule_is_the_one_that_gives_the_recorded_digest():
    names = (*(f"layers.{at}.q.weight" for at in range(4)), "readout.weight")
    shapes = ((4, 4),) * 4 + ((2, 4),)
    query = TargetQuery(family="f", lr=LR, names=names, shapes=shapes, depth="split")
    asked = build_targets(query, {LR: (BASE,)}, load)
    listed = ParameterList(names, shapes, ("query/key",) * 4 + ("readout",))
    values = [asked[name] for name in names]
    deep = Trajectory(names, shapes, [1], [values], bands=listed.bands, learning_rates=[LR])
    spec = RecordingSpec(
        family="f", lr=LR, parameters=listed, variant="matched",
        targets_digest=asked.digest, targets_sources=(BASE.spec.id,),
    )  # fmt: skip
    found = rates(Recording(spec=spec), deep, np.ones((1, 5)), BASE)
    assert (found.depth, found.targets[0].tolist()) == ("split", pytest.approx(values))


@pytest.mark.parametrize(
    ("measured", "multipliers", "notes"),
    [
        ([NAN, 1e-5, 2, 9], (1, 1, 1), ("unmeasured", "noise", "")),
        ([16, 4, 2, 9], (0.25, 2, 0.5), ("", "", "clamped")),
    ],
)
def test_what_was_left_alone_or_clamped_is_said(measured, multipliers, notes):
    recording, trajectory = run([measured, [2, 4, 4, 9]])
    found = rates(recording, trajectory, vectors(multipliers, multipliers), BASE)
    assert found.notes == notes


def test_without_its_base_a_run_shows_what_it_reached_when_it_was_matched():
    recording, trajectory = run([[16, 4, 2, 9], [2, 4, 4, 9]])
    found = rates(recording, trajectory, vectors((0.25, 2, 1), (0.25, 2, 1)))
    assert found.missing == (BASE.spec.id,)
    assert (found.depth, found.clock) == ("", "")
    assert found.targets.tolist() == [[4, 8, 2], [4, 8, 2]]
    assert found.ratios.tolist() == [[1, 1, 1], [0.125, 1, 2]]


def test_effective_fslrs_have_rate_and_multiplier_in_them():
    _, trajectory = run([[16, 4, 2, 9], [2, 4, 4, 9]])
    columns = AuxiliaryColumns(
        trajectory.steps, {}, {"multiplier": vectors((0.5, 2, 1), (1, 1, 1))}
    )
    found = effective_fslrs(trajectory, columns, LR)
    want = [[0.08, 0.08, 0.02, 0.09], [0.01, 0.02, 0.02, 0.045]]
    np.testing.assert_allclose(found.values, want, rtol=1e-6)
    plain = Trajectory(NAMES, SHAPES, STEPS, trajectory.values, bands=BANDS)
    without = effective_fslrs(plain, AuxiliaryColumns(plain.steps, {}, {}), 2.0)
    assert without.values[0].tolist() == [32, 8, 4, 18]


def test_a_run_that_was_not_matched_and_a_step_that_was_not_measured_are_refused():
    recording, trajectory = run([[16, 4, 2, 9], [2, 4, 4, 9]])
    with pytest.raises(NotFound, match="has no multipliers: the run was not matched"):
        rates(recording, trajectory, np.full((2, 4), NAN), BASE)
    found = rates(recording, trajectory, vectors((0.25, 2, 1), (1, 1, 1)), BASE)
    with pytest.raises(NotFound, match=r"step: 7 was not measured; 101 was"):
        found.at(7)
