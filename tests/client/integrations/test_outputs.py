"""The outputs of a model are found in what it returns."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from flerm_client.integrations._outputs import output_of
from flerm_core.errors import InvalidInput


class Returning(nn.Module):
    def __init__(self, returned: Any) -> None:
        super().__init__()
        self.returned = returned
        self.asked: list[dict[str, Any]] = []

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.asked.append(kwargs)
        return self.returned


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
def test_outputs_are_found_in_what_models_return(returned: Any) -> None:
    assert torch.equal(output_of(Returning(returned), torch.zeros(2)), torch.ones(2))


def test_only_an_encoder_decoder_gets_the_labels() -> None:
    model = Returning(torch.ones(2))
    output_of(model, {"input_ids": 1, "labels": 2})
    model.config = SimpleNamespace(is_encoder_decoder=True)
    output_of(model, {"input_ids": 1, "labels": 2})
    assert model.asked == [{"input_ids": 1}, {"input_ids": 1, "labels": 2}]


def test_of_a_pair_of_inputs_and_targets_the_model_gets_the_inputs() -> None:
    assert output_of(nn.Identity(), [torch.ones(2), torch.zeros(2)]).tolist() == [1.0, 1.0]


def test_a_model_without_logits_is_refused_and_what_it_returns_is_named() -> None:
    with pytest.raises(
        InvalidInput,
        match=r"returns a dict with start_logits, end_logits, which has no logits: .*output=",
    ):
        output_of(
            Returning({"start_logits": torch.ones(2), "end_logits": torch.ones(2)}),
            torch.zeros(2),
        )
