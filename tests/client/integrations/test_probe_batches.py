"""What integrations find by themselves: a probe that leaves the training's loader alone, and the outputs of any model."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
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

    def test_a_stream_that_cannot_be_read_twice_is_refused(self) -> None:
        with pytest.raises(
            InvalidInput, match=r"Unique is a stream that cannot be read twice .* give probe="
        ):
            probe_of(DataLoader(Unique(), batch_size=2))

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


class TestOutputs:
    @pytest.mark.parametrize(
        "returned",
        [
            torch.ones(2),
            {"loss": torch.zeros(()), "logits": torch.ones(2)},
            SimpleNamespace(logits=torch.ones(2)),
            (torch.ones(2), None),
        ],
        ids=["tensor", "mapping", "attribute", "tuple"],
    )
    def test_they_are_found_in_what_models_return(self, returned: Any) -> None:
        assert torch.equal(output_of(Returning(returned), torch.zeros(2)), torch.ones(2))

    def test_labels_stay_out_but_for_an_encoder_decoder(self) -> None:
        model = Returning(torch.ones(2))
        output_of(model, {"input_ids": 1, "labels": 2})
        model.config = SimpleNamespace(is_encoder_decoder=True)
        output_of(model, {"input_ids": 1, "labels": 2})
        assert model.asked == [{"input_ids": 1}, {"input_ids": 1, "labels": 2}]

    def test_of_inputs_and_targets_the_inputs_go_in(self) -> None:
        assert output_of(nn.Identity(), [torch.ones(2), torch.zeros(2)]).tolist() == [1.0, 1.0]

    def test_what_has_none_is_told_with_what_it_has(self) -> None:
        with pytest.raises(
            InvalidInput,
            match=r"returns a dict with start_logits, end_logits, which has no logits: .*output=",
        ):
            output_of(
                Returning({"start_logits": torch.ones(2), "end_logits": torch.ones(2)}),
                torch.zeros(2),
            )


class Returning(nn.Module):
    def __init__(self, returned: Any) -> None:
        super().__init__()
        self.returned = returned
        self.asked: list[dict[str, Any]] = []

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.asked.append(kwargs)
        return self.returned
