"""A run's rows and its end."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from flerm_client.training.run_log import RunLog, ending_status, final_loss
from flerm_client.training.run_remarks import RunRemarks
from flerm_core.records.recording import ParameterList


def run_log() -> RunLog:
    return RunLog(ParameterList(("a", "b"), ((2,), (3,)), ("other", "other")), RunRemarks())


def test_a_row_has_the_loss_and_tokens_logged_for_its_step_alone():
    log = run_log()
    log.log(0.5, 10)
    log.add(1, {"a": 1.0}, 0.1, None, {})
    log.end_step(1)
    log.add(2, {"a": 1.0}, 0.1, {"a": 2.0, "b": 1.0}, {"sharpness": 3.0, "batch_factor": math.nan})
    first, second = log.rows
    assert (first.loss, first.tokens, first.vectors, first.scalars) == (0.5, 10, {}, {})
    assert (second.loss, second.tokens, second.scalars) == (None, None, {"sharpness": 3.0})
    assert second.vectors["multiplier"].tolist() == [2.0, 1.0]
    assert log.tokens == 10


def test_a_measurement_without_any_finite_fslr_is_left_out():
    log = run_log()
    log.add(1, {"a": math.nan, "b": 0.0}, 0.1, None, {})
    log.add(2, {"a": math.inf, "b": 2.0}, 0.1, None, {})
    assert [row.step for row in log.rows] == [2]
    assert np.isnan(log.rows[0].values[0]) and log.rows[0].values[1] == 2.0


@pytest.mark.parametrize(("count", "window"), [(1, 1), (10, 2), (999, 200), (5000, 200)])
def test_the_final_loss_is_a_mean_over_the_end_of_the_run(count, window):
    losses = [float(at) for at in range(count)]
    assert final_loss(losses, count) == pytest.approx(sum(losses[-window:]) / window)


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "completed"), (KeyboardInterrupt(), "interrupted"), (ValueError(), "failed")],
)
def test_a_run_that_nobody_closed_ends_as_its_process_did(error, status, monkeypatch):
    monkeypatch.delattr(sys, "ps1", raising=False)
    monkeypatch.setattr(sys, "last_value", error, raising=False)
    assert ending_status() == status
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    assert ending_status() == "interrupted"
