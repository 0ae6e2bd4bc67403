"""Vision and speech models of transformers, by tiny random configurations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.architecture import EXAMPLES, SIDE, VOCABULARY, Architecture, Deep, Wide, images
from tests.zoo.models.hugging_face import hugging_face

VIT: dict[str, Any] = {
    "hidden_size": Wide(16), "intermediate_size": Wide(24), "num_hidden_layers": Deep(2),
    "num_attention_heads": 2, "image_size": SIDE, "patch_size": 8, "num_labels": 4,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "drop_path_rate": 0.0,
}  # fmt: skip

VISION: dict[str, dict[str, Any]] = {
    "ViTForImageClassification": VIT,
    "DeiTForImageClassification": VIT,
    "BeitForImageClassification": VIT,
    "Dinov2ForImageClassification": VIT,
    "SwinForImageClassification": {
        "embed_dim": Wide(16), "depths": [Deep(2)], "num_heads": [2], "window_size": 2,
        "image_size": SIDE, "patch_size": 4, "num_labels": 4, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0, "drop_path_rate": 0.0,
    },
    "ConvNextForImageClassification": {
        "hidden_sizes": [Wide(8), Wide(16)], "depths": [Deep(2), Deep(2)], "num_stages": 2,
        "patch_size": 4, "num_labels": 4, "drop_path_rate": 0.0,
    },
}  # fmt: skip

RESNET: dict[str, Any] = {
    "embedding_size": Wide(8), "hidden_sizes": [Wide(8), Wide(16)], "depths": [2, 2],
    "layer_type": "basic", "num_labels": 4,
}  # fmt: skip

WAV2VEC2: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": Wide(16), "intermediate_size": Wide(24),
    "num_hidden_layers": Deep(2), "num_attention_heads": 2, "conv_dim": (8, 8),
    "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "hidden_dropout": 0.0,
    "attention_dropout": 0.0, "feat_proj_dropout": 0.0, "activation_dropout": 0.0,
    "layerdrop": 0.0, "apply_spec_augment": False, "final_dropout": 0.0,
}  # fmt: skip


def _sound(generator: torch.Generator) -> Tensor:
    return torch.randn(EXAMPLES, 400, generator=generator)


def _image_embeddings(model: nn.Module, batch: Tensor) -> Tensor:
    found: Tensor = model(batch).image_embeds
    return found


def architectures() -> list[Architecture]:
    """All that this file holds. The first of a ResNet's blocks differ from the later ones."""
    return [
        *(hugging_face(kind, config, batch=images) for kind, config in VISION.items()),
        hugging_face(
            "ResNetForImageClassification",
            RESNET,
            batch=images,
            scales=("width",),
            couples_examples=True,
        ),
        hugging_face(
            "CLIPVisionModelWithProjection",
            VIT | {"projection_dim": 8},
            batch=images,
            output=_image_embeddings,
        ),
        hugging_face("Wav2Vec2ForCTC", WAV2VEC2, batch=_sound),
        hugging_face("HubertForCTC", WAV2VEC2, batch=_sound),
    ]
