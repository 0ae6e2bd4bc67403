"""The model's outputs, found by themselves: what `output=` is when a framework calls the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from flerm_core.errors import InvalidInput

# What Hugging Face's data sets call the targets: with them a model would compute a loss that nobody asked for.
_TARGETS = frozenset({"labels", "label", "label_ids", "start_positions", "end_positions"})


def output_of(model: nn.Module, batch: Any) -> Tensor:
    """f for a batch as loaders give it: a tensor, a mapping of keyword arguments, or (inputs, targets).

    Of what the model returns it takes the tensor itself, `.logits`, or the first of a tuple. Raises `InvalidInput` when
    there is none of these: give `output=`.
    """
    if isinstance(batch, Mapping):
        # An encoder-decoder makes its decoder's inputs of the labels.
        keeps = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
        returned = model(
            **{key: value for key, value in batch.items() if keeps or key not in _TARGETS}
        )
    elif isinstance(batch, tuple | list):
        returned = model(batch[0])
    else:
        returned = model(batch)
    found = (
        returned["logits"]
        if isinstance(returned, Mapping) and "logits" in returned
        else getattr(returned, "logits", returned)
    )
    if isinstance(found, tuple | list) and found:
        found = found[0]
    if isinstance(found, Tensor):
        return found
    has = f" with {', '.join(map(str, returned))}" if isinstance(returned, Mapping) else ""
    raise InvalidInput(
        f"the model returns a {type(returned).__name__}{has}, which has no logits: "
        "say what its outputs are by output=lambda model, batch: ..."
    )


def loss_in(returned: Any) -> Tensor | None:
    """The loss that a model returned beside its outputs, by Hugging Face's convention; None when there is none."""
    loss = (
        returned.get("loss") if isinstance(returned, Mapping) else getattr(returned, "loss", None)
    )
    return loss.detach() if isinstance(loss, Tensor) and loss.ndim == 0 else None
