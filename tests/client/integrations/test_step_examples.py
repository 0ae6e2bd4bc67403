"""How many examples a step has, as far as a loader says so surely."""

from __future__ import annotations

from typing import Any

import pytest
from accelerate.data_loader import prepare_data_loader
from framework_models import Stream
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, SequentialSampler

from flerm_client.integrations._step_examples import step_examples

DATA = list(range(64))


class ByLength(BatchSampler):
    """A sampler of the user's own, whose batches may have any size."""


def on_two_ranks(loader: DataLoader[Any], **how: bool) -> Any:
    """What Accelerate makes of `loader` on the first of two ranks."""
    return prepare_data_loader(loader, num_processes=2, process_index=0, put_on_device=False, **how)


@pytest.mark.parametrize(
    ("loader", "accumulation", "replicas", "examples"),
    [
        (DataLoader(DATA, batch_size=8), 1, 1, 8),
        (DataLoader(DATA, batch_size=8, shuffle=True), 4, 2, 64),
        (DataLoader(DATA, batch_size=8, sampler=DistributedSampler(DATA, 2, 0)), 1, 2, 16),
        (DataLoader(Stream(), batch_size=8), 3, 2, 48),
        (on_two_ranks(DataLoader(DATA, batch_size=8)), 2, 2, 32),
        (on_two_ranks(DataLoader(DATA, batch_size=8), split_batches=True), 2, 2, 16),
        (on_two_ranks(DataLoader(Stream(), batch_size=8)), 1, 2, 16),
        (on_two_ranks(DataLoader(Stream(), batch_size=8), split_batches=True), 1, 2, 8),
        (DataLoader(DATA, batch_size=None), 1, 1, None),  # its items are batches
        (DataLoader(DATA, batch_sampler=ByLength(SequentialSampler(DATA), 8, False)), 1, 1, None),
        (DataLoader(DATA, batch_size=128), 1, 1, None),  # a batch has all 64
        (DataLoader(DATA, batch_size=32), 4, 1, None),  # a pass ends after two batches
        ({"one": DataLoader(DATA, batch_size=8)}, 1, 1, None),
        ([(DATA, DATA)], 1, 1, None),
    ],
)  # fmt: skip
def test_the_examples_of_a_step_are_known_or_not_said(
    loader: Any, accumulation: int, replicas: int, examples: int | None
) -> None:
    assert step_examples(loader, accumulation, replicas) == examples
