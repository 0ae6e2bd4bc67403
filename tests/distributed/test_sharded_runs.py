"""Whole runs on sharded models: recorded without a trace, matched, stopped and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import checkpoint
from torch.optim import AdamW

from flerm_client import FLeRM

from . import sharded
from .launch import on_ranks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[Any]:
    result = on_ranks(2, "sharded_train.py", folder=folder)
    assert result.code == 0, result.output
    return result.ranks


@pytest.mark.parametrize(
    "how",
    [
        "example",
        "kronecker",
        "exact",
        "accumulating",
        "mixed precision",
        "checkpointed",
        "tensor parallel",
    ],
)
def test_a_recording_leaves_no_trace(ranks: list[Any], how: str) -> None:
    assert [rank[f"no trace, {how}"] for rank in ranks] == [True, True]


@pytest.mark.parametrize("wrapper", ["fsdp", "tp"])
def test_a_matched_run_is_a_plain_one_at_these_rates_on_every_rank(
    ranks: list[Any], wrapper: str
) -> None:
    first = ranks[0][wrapper]
    assert any(m != 1.0 for m in first["multipliers"].values())
    for rank in ranks:
        assert rank[wrapper]["multipliers"] == first["multipliers"]
        assert rank[wrapper]["fslr"] == first["fslr"]
        for name, weight in rank[wrapper]["weights"].items():
            torch.testing.assert_close(weight, rank[wrapper]["plain"][name], rtol=1e-4, atol=1e-5)


def test_a_run_goes_on_from_a_distributed_checkpoint(ranks: list[Any]) -> None:
    for rank in ranks:
        found = rank["resumed"]
        uninterrupted, again = found["losses"]
        assert (
            again[0] == uninterrupted[0]
        )  # later ones are matched by fresh draws of the probe on all ranks but the first
        assert found["steps"] == [1, 3, 5]
        assert found["id"][1] == ranks[0]["resumed"]["id"][0]
        assert found["multipliers"][1] == ranks[0]["resumed"]["multipliers"][1]


def test_the_checkpoint_loads_into_one_process(ranks: list[Any], folder: Path) -> None:
    model = sharded.build().float()
    optimizer = AdamW(model.parameters(), 1e-2)
    targets = {name: 1.0 for name, _ in model.named_parameters()}
    probe = [sharded.batch_of(20)]
    flerm = FLeRM.match(
        model, optimizer, probe=probe, family="f", targets=targets, every=2, warmup=2
    )
    checkpoint.load({"flerm": flerm}, checkpoint_id=folder / "checkpoint", no_dist=True)
    assert flerm.steps == 3
    assert flerm.trajectory.steps.tolist() == [1, 3]
    assert flerm.recording_id == ranks[0]["resumed"]["id"][0]
    model(probe[0]).sum().backward()
    optimizer.step()
    assert flerm.steps == 4


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("ranks_now", [2, 4])
def test_the_checkpoint_loads_into_other_shardings_and_worlds(
    ranks: list[Any], folder: Path, ranks_now: int
) -> None:
    saved = ranks[0]["resumed"]
    result = on_ranks(ranks_now, "sharded_load.py", folder=folder)
    assert result.code == 0, result.output
    for how in ("fsdp", "hsdp", "tp", "ddp"):
        first = result.ranks[0][how]
        assert first["id"] == saved["id"][0]
        assert (first["steps"], first["measured"]) == (3, [1, 3, 5])
        assert first["multipliers"] == saved["at checkpoint"]
        assert any(first["later"][name] != m for name, m in first["multipliers"].items())
        assert all(rank[how] == first for rank in result.ranks)
