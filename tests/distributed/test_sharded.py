"""However ranks share a model, they measure what one process does on all their batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from . import sharded
from .launch import on_ranks

Z = "kronecker,iid,full"
TWO = {
    "blocks": "kronecker,full,example,exact",
    "tied": "example",
    "offloaded": "example",
    "resharded": "example",
    "columns": "kronecker,example",
    "some": "example",
    "summed": "example",
    "accumulating": "kronecker",
    "frozen": "example",
    "uneven": "example,exact",
    "gallery-behind": "example",
    "gallery-positions": "kronecker,example",
    "gallery-convolution": "example",
    "tp": "kronecker,example",
    "sequence": "kronecker,example",
    "vocabulary": "kronecker,example,exact",
}
MORE_OF_TWO = {
    "blocks": "iid",
    "tied": Z,
    "tp": "iid,full",
    "offloaded": "kronecker",
    "resharded": "kronecker",
    "some": "kronecker,full",
    "summed": "kronecker",
    "accumulating": "example",
    "frozen": "kronecker",
    "uneven": Z,
    "vocabulary": "iid,full",
}
FOUR = {"hsdp-uneven": "kronecker,example", "fsdp-sequence": "kronecker,example,exact"}
MORE = {
    "blocks": "kronecker,example",
    "kept": "kronecker,example",
    "every": f"{Z},example",
    "hsdp": f"{Z},example,exact",
    "fsdp-tp": f"{Z},example,exact",
    "fsdp-sequence": Z,
}


def pairs(wanted: dict[str, str]) -> list[tuple[str, str]]:
    return [
        (name, estimator)
        for name, estimators in wanted.items()
        for estimator in estimators.split(",")
    ]


def measured(wanted: dict[str, str], ranks: int, folder: Path) -> list[Any]:
    arguments = [f"{estimators}:{name}" for name, estimators in wanted.items()]
    result = on_ranks(ranks, "sharded_measure.py", *arguments, folder=folder)
    assert result.code == 0, result.output
    return result.ranks


def compare(found: list[Any], name: str, estimator: str) -> None:
    expected = sharded.together(name, estimator, len(found))
    first = found[0][name, estimator]
    assert all(rank[name, estimator] == first for rank in found)
    assert first.keys() == expected.keys()
    # `exact` takes differences of forwards when sharded. All others only sum in another order.
    assert first == pytest.approx(expected, rel=1e-5 if estimator == "exact" else 1e-10)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return measured(TWO, 2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def more_of_two(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return measured(MORE_OF_TWO, 2, tmp_path_factory.mktemp("more_of_two"))


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return measured(FOUR, 4, tmp_path_factory.mktemp("four"))


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return measured(MORE, 4, tmp_path_factory.mktemp("more"))


@pytest.mark.parametrize(("name", "estimator"), pairs(TWO))
def test_two_ranks_measure_as_one(two: list[Any], name: str, estimator: str) -> None:
    compare(two, name, estimator)


@pytest.mark.parametrize(("name", "estimator"), pairs(FOUR))
def test_a_grid_of_four_ranks_measures_as_one(four: list[Any], name: str, estimator: str) -> None:
    compare(four, name, estimator)


def compare_later(ranks: list[Any], name: str) -> None:
    expected = sharded.together(name, "example", len(ranks), measurements=2)
    assert all(
        rank["again", name, "example"] == pytest.approx(expected, rel=1e-10) for rank in ranks
    )


@pytest.mark.parametrize(
    "name", [name for name, estimators in TWO.items() if "example" in estimators]
)
def test_later_measurements_gather_changes_together(two: list[Any], name: str) -> None:
    compare_later(two, name)
    assert two[0]["gathers", name, "example"] == (
        0 if name in ("tp", "sequence", "vocabulary") else 1
    )


@pytest.mark.parametrize("name", FOUR)
def test_later_measurements_of_a_grid_gather_changes_together(four: list[Any], name: str) -> None:
    compare_later(four, name)
    assert four[0]["gathers", name, "example"] == 1


# The first all-reduce has two float32: does a rank lack batches, did the step change a weight?
# `example` then asks twice, by one float32 each: does what was learnt of the model fit what the
# forward ran, and what the backward found?
FITS = [4, 4]


def test_bytes_of_example_when_sharded_are_a_number_for_each_fslr(two: list[Any]) -> None:
    lengths, parameters = two[0]["bytes", "blocks", "example"]
    fslrs = len(two[0]["blocks", "example"])
    assert lengths == [8, *FITS, 8 * (2 + fslrs)]
    assert sum(lengths) <= 8 * fslrs + 64
    assert sum(lengths) < 0.05 * parameters


def test_bytes_of_example_when_all_ranks_share_a_batch_are_those_of_each_examples_part(
    two: list[Any],
) -> None:
    lengths, _ = two[0]["bytes", "tp", "example"]
    tensors, examples = (
        len(list(sharded.build(sharded.ParallelDecoder).parameters())),
        len(sharded.batch_of(0)),
    )
    assert lengths == [8, *FITS, 8 * (2 + tensors * examples)]


def test_bytes_of_example_when_some_ranks_share_a_batch_are_those_of_both_sums(
    four: list[Any],
) -> None:
    lengths, _ = four[0]["bytes", "fsdp-sequence", "example"]
    tensors, examples = (
        len(list(sharded.build(sharded.ParallelDecoder).parameters())),
        len(sharded.batch_of(0)),
    )
    assert lengths == [
        8,
        *FITS,
        8 * tensors * examples,
        8 * (2 + len(four[0]["fsdp-sequence", "example"])),
    ]


def test_bytes_of_kronecker_when_sharded_are_the_sums_along_the_dimension_that_is_cut(
    two: list[Any],
) -> None:
    lengths, parameters = two[0]["bytes", "blocks", "kronecker"]
    whole = [p.numel() // p.shape[0] for p in sharded.build().parameters()]
    others = sum(p.ndim for p in sharded.build().parameters())
    assert lengths == [8, 8 * (2 + sum(whole) + others)]
    assert sum(lengths) < 0.2 * parameters


@pytest.mark.slow
@pytest.mark.parametrize(("name", "estimator"), pairs(MORE_OF_TWO))
def test_two_ranks_measure_as_one_by_other_estimators(
    more_of_two: list[Any], name: str, estimator: str
) -> None:
    compare(more_of_two, name, estimator)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "estimator"), pairs(MORE))
def test_four_ranks_measure_as_one(more: list[Any], name: str, estimator: str) -> None:
    compare(more, name, estimator)
