"""The default of `output=` where a framework calls the model: logits, found by convention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from flerm_core.errors import InvalidInput

# The names of the targets in Hugging Face's data sets. A model that gets them computes a loss,
# which a measurement does not need.
_TARGETS = frozenset({"labels", "label", "label_ids", "start_positions", "end_positions"})


def output_of(model: nn.Module, batch: Any) -> Tensor:
    """The outputs f for a batch of a loader: a tensor, a mapping of keyword arguments, or a pair.

    Of a pair (inputs, targets), the model gets the inputs. Of what the model returns, f is the
    tensor itself, `.logits`, or the first of a tuple. Raises `InvalidInput` when there is none of
    these; `output=` then says what the outputs are.
    """
    if isinstance(batch, Mapping):
        # An encoder-decoder derives its decoder's inputs from the labels.
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
