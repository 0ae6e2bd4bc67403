"""How a class of transformers becomes an architecture of the zoo."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from tests.zoo.architecture import Architecture, at_scale, images, logits, shaken, tokens

SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


def hugging_face(
    kind: str,
    config: Mapping[str, Any],
    *,
    batch: Any = tokens,
    output: Any = logits,
    scales: tuple[str, ...] = ("width", "depth"),
    couples_examples: bool = False,
) -> Architecture:
    """The model class `kind` of transformers, its configuration class filled by `config`."""

    def build(width: int, depth: int) -> nn.Module:
        import transformers

        model_class = getattr(transformers, kind)
        model: nn.Module = model_class(model_class.config_class(**at_scale(config, width, depth)))
        return shaken(model) if batch is images else model

    return Architecture(
        kind, "transformers", build, batch, output, scales=scales, couples_examples=couples_examples
    )
