"""Probe batches out of the training data leave the training's loader as it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from flerm_client import FLeRM
from flerm_client.integrations._outputs import output_of
from flerm_client.integrations.probe_batches import probe_of
from flerm_core.errors import InvalidInput


class Counting(IterableDataset[Tensor]):
    """A stream that remembers where it is."""

    def __init__(self) -> None:
        self.position = 0

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            self.position += 1
            yield torch.full((3,), float(self.position))


class Unique(Counting):
    def __init__(self) -> None:
        super().__init__()
        self.source = (number for number in range(9))  # a generator cannot be copied


def rows(count: int = 10) -> TensorDataset:
    return TensorDataset(torch.arange(count, dtype=torch.float32).unsqueeze(1))


class TestProbe:
    def test_it_has_the_loaders_batches_in_another_order(self) -> None:
        loader = DataLoader(
            rows(),
            batch_size=4,
            collate_fn=lambda items: {"x": torch.stack([item[0] for item in items])},
        )
        batches = [batch["x"] for batch in probe_of(loader)]
        assert [tuple(batch.shape) for batch in batches] == [(4, 1), (4, 1)]
        assert len(torch.cat(batches).unique()) == 8

    def test_a_data_set_smaller_than_a_batch_is_one_batch(self) -> None:
        assert [len(batch[0]) for batch in probe_of(DataLoader(rows(3), batch_size=4))] == [3]

    def test_the_size_is_found_behind_a_batch_sampler(self) -> None:
        sampler = torch.utils.data.BatchSampler(
            torch.utils.data.SequentialSampler(rows()), batch_size=5, drop_last=False
        )
        assert [len(batch[0]) for batch in probe_of(DataLoader(rows(), batch_sampler=sampler))] == [
            5,
            5,
        ]

    def test_a_stream_is_read_from_a_place_of_its_own(self) -> None:
        stream = Counting()
        loader = iter(DataLoader(stream, batch_size=2))
        next(loader)
        probe = iter(probe_of(DataLoader(stream, batch_size=2)))
        assert next(probe).shape == (2, 3)
        assert stream.position == 2
        assert next(loader)[:, 0].tolist() == [3.0, 4.0]

    def test_a_stream_that_cannot_be_copied_is_read_by_a_copy_of_the_process(self) -> None:
        stream = Unique()
        assert next(iter(probe_of(DataLoader(stream, batch_size=2))))[:, 0].tolist() == [1.0, 2.0]
        assert stream.position == 0

    def test_a_generator_is_refused_and_a_list_is_a_probe(self) -> None:
        assert probe_of(batches := [torch.zeros(2)]) is batches
        with pytest.raises(
            InvalidInput,
            match="the training data is a generator, which cannot be read beside training",
        ):
            probe_of(torch.zeros(2) for _ in range(3))

    @pytest.mark.parametrize(
        "kind",
        [lambda loader: {"a": loader, "b": loader}, lambda loader: [loader, loader]],
        ids=["dict", "list"],
    )
    def test_of_several_loaders_one_must_be_named(self, kind: Any) -> None:
        with pytest.raises(
            InvalidInput, match=r"the training data is a (dict|list) of 2 loaders: give probe="
        ):
            probe_of(kind(DataLoader(rows(), batch_size=2)))

    def test_a_shuffling_loader_gives_the_training_the_order_it_would_have_had(self) -> None:
        def order(probed: bool) -> list[float]:
            torch.manual_seed(0)
            model = nn.Linear(1, 1)
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            loader = DataLoader(rows(), batch_size=2, shuffle=True)
            if probed:
                FLeRM.record(
                    model, optimizer, probe=probe_of(loader), family="f", every=1, output=output_of
                )
            seen = []
            for (batch,) in loader:
                seen += batch.flatten().tolist()
                model(batch).square().mean().backward()
                optimizer.step()
            return seen

        assert order(probed=True) == order(probed=False)
