"""A sharded model is looked at as another one, before its first step."""

from __future__ import annotations

from typing import Any

import pytest

from .launch import on_ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("rehearsal")
    result = on_ranks(2, "sharded_rehearsal.py", folder=folder)
    assert result.code == 0, result.output
    return result.ranks


@pytest.mark.parametrize("how", ["fsdp", "tp"])
def test_an_operator_without_a_derivative_is_said_before_weights_move(
    ranks: list[Any], how: str
) -> None:
    for rank in ranks:
        found = rank[f"{how}, no derivative"]
        assert "a batch of the probe cannot be measured: NotImplementedError" in found["raised"]
        assert found["untouched"]
        assert found["gradients"]


@pytest.mark.parametrize("how", ["fsdp", "tp"])
def test_state_that_no_measurement_puts_back_is_said_once(ranks: list[Any], how: str) -> None:
    (first,), other = (rank[f"{how}, hidden state"]["said"] for rank in ranks)
    assert "two forwards of one batch with equal random numbers differ" in first
    assert other == []


def test_a_module_without_forward_mode_is_measured_all_the_same(ranks: list[Any]) -> None:
    for rank in ranks:
        found, exact = (rank[f"no forward mode, {name}"] for name in ("example", "exact"))
        assert "norm.weight" in found["fslr"]
        assert found["fslr"] == pytest.approx(exact["fslr"], rel=0.2)
        assert found["gradients"]
        assert exact["fslr"] == ranks[0]["no forward mode, exact"]["fslr"]
