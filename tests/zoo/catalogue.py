"""All architectures of the zoo."""

from __future__ import annotations

import torch

from tests.zoo.architecture import Architecture
from tests.zoo.models import (
    adapters,
    decoders,
    diffusion,
    encoders,
    solvers_and_samplers,
    timm_models,
    torch_layers,
    torchvision_models,
    unusual,
    vision_and_speech,
)
from tests.zoo.trial import Outcome, try_architecture

FILES = (
    decoders,
    encoders,
    vision_and_speech,
    timm_models,
    torchvision_models,
    unusual,
    solvers_and_samplers,
    diffusion,
    torch_layers,
    adapters,
)


def catalogue() -> list[Architecture]:
    """Every architecture, whether its package is installed or not."""
    return [each for file in FILES for each in file.architectures()]


def try_number(number: int) -> Outcome:
    """Tries the architecture at a place of the catalogue, on one core: a process pool's task."""
    torch.set_num_threads(1)
    return try_architecture(catalogue()[number])
