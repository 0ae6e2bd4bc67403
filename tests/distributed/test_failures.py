"""What cannot be measured raises the same error on every rank, at the start or in a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .launch import on_ranks

SHAPES = "rank 1: a batch of the probe cannot be measured: in input (Linear) RuntimeError: mat1 and"


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
def test_a_rank_that_fails_makes_all_raise_the_same_sentence(wrapper: str, tmp_path: Path) -> None:
    result = on_ranks(2, "failing_rank.py", wrapper, folder=tmp_path)
    assert len(result.ranks) == 2, result.output
    found, not_finite = zip(*result.ranks, strict=True)
    assert found[0] == found[1]
    told = [sentence for kind, sentence in found[0] if kind != "goes on"]
    if wrapper == "ddp":
        assert list(found[0][-1]) == ["goes on", "4 0"], "recording never ends a run"
    assert len(told) == (4 if wrapper == "ddp" else 2)
    assert all(sentence == "rank 1: OSError: the file is gone" for sentence in told[::2])
    assert all(sentence.startswith(SHAPES) for sentence in told[1::2])
    # Rank 0 alone warns: of the probe of rank 1, and of a loss that was not finite on rank 1.
    of_probe = "rank 1: a batch of the probe holds NaN: tensor 1"
    step = "step 2 was not measured: rank 0: this step has made weights of the model not finite"
    assert not_finite[0] == [
        [
            f"step 1 was not measured: {of_probe}",
            f"measuring has stopped at step 3, after 3 failures in a row: {of_probe}",
        ],
        [f"{step}: input.weight"],
    ]
    assert not_finite[1] == [[], []]


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    result = on_ranks(2, "refused.py", folder=tmp_path_factory.mktemp("refused"))
    assert result.code == 0, result.output
    return result.ranks


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("plain", "Unsupported: 2 ranks run, but the model is in no DistributedDataParallel"),
        (
            "fsdp1",
            "Unsupported: FSDP1 (FullyShardedDataParallel) flattens parameters and cannot be "
            "measured; move to FSDP2",
        ),
        (
            "experts",
            "Unsupported: the model's parameters lie on different meshes of ranks: expert "
            "parallel cannot be measured",
        ),
        (
            "expert mesh",
            "Unsupported: the model's parameters lie on different meshes of ranks: expert "
            "parallel cannot be measured",
        ),
        (
            "own experts",
            "Unsupported: blocks.1.up.weight has other values on other ranks: replicas hold "
            "the same ones, and expert",
        ),
        (
            "ignored",
            "Unsupported: DistributedDataParallel ignores blocks.0.up.weight, which may "
            "differ between ranks: such experts",
        ),
        (
            "zero",
            "Unsupported: ZeroRedundancyOptimizer cannot be measured or matched: each rank "
            "steps only its own part",
        ),
        (
            "pipe",
            "Unsupported: a pipeline stage does not compute the outputs and cannot be measured",
        ),
        (
            "stage",
            "Unsupported: a pipeline stage does not compute the outputs and cannot be measured",
        ),
        (
            "schedule",
            "Unsupported: a pipeline stage does not compute the outputs and cannot be measured",
        ),
        (
            "stage's module",
            "Unsupported: 2 ranks run, but the model is in no DistributedDataParallel",
        ),
        (
            "stages as replicas",
            "Unsupported: the ranks hold different parameters: replicas hold the same ones, "
            "and pipeline",
        ),
        (
            "hooked",
            "Unsupported: a hook set by set_all_reduce_hook reduces gradients in a way that "
            "cannot be known",
        ),
        ("empty", "MeasurementError: every probe batch of this measurement is empty"),
        (
            "slices",
            "Unsupported: rank 0: the outputs differ between the ranks that work on one batch",
        ),
    ],
)
def test_refused_by_name(refused: list[Any], how: str, sentence: str) -> None:
    told = [
        rank[how].replace("rank 1: ", "rank 0: ") for rank in refused
    ]  # of equals, whoever says it first
    assert all(each.startswith(sentence) for each in told), told[0]
    assert refused[0][how] == refused[1][how]


def test_a_process_group_that_is_not_the_models_mesh(refused: list[Any]) -> None:
    assert refused[0]["group"] == (
        "InvalidInput: process_group: the model is sharded over ranks [0, 1], "
        "it must be these or None"
    )
