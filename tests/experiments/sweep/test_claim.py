"""The claim in small: the base's best learning rate stays best at a greater width, and a run of
another batch finds its rates.

`make results-small` runs this. A few minutes of training allow coarse bounds: at a greater width,
the matched optimum within half an octave, where docs/results.md aims at a quarter, and a loss at
the base's rate of at most 1.02 times the best loss of plain training.
"""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from flerm_client.cli import main


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"file://{tmp_path_factory.mktemp('results')}/registry"


def sweep(preset: str, address: str, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Runs the sweep, prints its table, and returns the table's rows."""
    assert main(["sweep", preset, "--registry", address]) == 0
    table = capsys.readouterr().out
    assert main(["sweep", preset, "--registry", address, "--table", "--json"]) == 0
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    with capsys.disabled():
        print(f"\n{table}")
    return rows


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("preset", "apart"), [("resmlp-small", 1.5), ("decoder-small", 1.0)])
def test_matched_training_keeps_the_bases_rate_where_plain_training_loses_it(
    preset: str, apart: float, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base, plain, matched = sweep(preset, address, capsys)
    assert plain["shift"]["octaves"] < -apart
    assert abs(matched["shift"]["octaves"]) < 0.5
    assert matched["loss_at_base"] < 1.02 * plain["loss"]
    assert matched["loss_at_base"] < plain["loss_at_base"]
    assert matched["seeds"] == plain["seeds"] > 0
    assert math.isfinite(base["optimum"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_betas_and_rates_that_follow_the_batch_halve_the_loss_at_the_bases_rate(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, plain, followed = sweep("resmlp-batch-small", address, capsys)
    assert followed["loss_at_base"] < 0.5 * plain["loss_at_base"]
    assert followed["loss_at_base"] < plain["loss"]
    assert followed["seeds"] == plain["seeds"] > 0
