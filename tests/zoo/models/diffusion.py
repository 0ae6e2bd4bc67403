"""Denoisers of diffusers, cut down."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.architecture import EXAMPLES, Architecture, shaken

Noisy = tuple[Tensor, Tensor]


def _batch(generator: torch.Generator) -> Noisy:
    """Noisy images [examples, 4, 8, 8] and times."""
    noisy = torch.randn(EXAMPLES, 4, 8, 8, generator=generator)
    return noisy, torch.randint(0, 1000, (EXAMPLES,), generator=generator)


def _unet(width: int, depth: int) -> nn.Module:
    from diffusers import UNet2DModel

    return shaken(UNet2DModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1,
        block_out_channels=(8 * width, 8 * width), norm_num_groups=2, attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ))  # fmt: skip


def _dit(width: int, depth: int) -> nn.Module:
    from diffusers import DiTTransformer2DModel

    return shaken(DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8 * width, in_channels=4, num_layers=2 * depth,
        sample_size=8, patch_size=2, num_embeds_ada_norm=1000, norm_num_groups=2, dropout=0.0,
    ))  # fmt: skip


def _sample(model: nn.Module, batch: Noisy) -> Tensor:
    found: Tensor = model(batch[0], batch[1]).sample
    return found


def _sample_of_class(model: nn.Module, batch: Noisy) -> Tensor:
    found: Any = model(batch[0], timestep=batch[1], class_labels=batch[1] % 4)
    sample: Tensor = found.sample
    return sample


def architectures() -> list[Architecture]:
    """All that this file holds. DiT leaves out a class label at random in training."""
    return [
        Architecture("UNet2DModel", "diffusers", _unet, _batch, _sample, ("width",)),
        Architecture("DiTTransformer2DModel", "diffusers", _dit, _batch, _sample_of_class,
                     draws_numbers=True),
    ]  # fmt: skip
