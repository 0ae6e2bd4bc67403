"""The digits: standardised, split once for all runs, every training example once an epoch."""

from __future__ import annotations

from itertools import islice

import torch

from flerm_experiments.workloads import WORKLOADS
from flerm_experiments.workloads.digits_data import load_digits_images


def rows(batch: torch.Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in batch}


def test_an_epoch_of_digits_is_every_training_example_once() -> None:
    batches = list(islice(WORKLOADS["resmlp"].batches(seed=0), 48))
    for epoch in (batches[:24], batches[24:]):
        assert torch.equal(
            torch.cat([inputs for inputs, _ in epoch]).sort(0).values,
            load_digits_images().images.sort(0).values,
        )
    assert not torch.equal(batches[0][0], batches[24][0])


def test_digits_are_standardised_and_split_for_good() -> None:
    data = load_digits_images()
    assert (len(data.images), len(data.held_out_images)) == (1536, 261)
    assert data.images.mean(0).abs().max() < 1e-5
    assert data.images.std(0).max() < 1.0 + 1e-5
    assert data.held_out_images.abs().max() < 20
    assert set(data.labels.tolist()) == set(range(10))
