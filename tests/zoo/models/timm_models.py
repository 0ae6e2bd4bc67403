"""Image classifiers of timm, cut down to a few thousand weights."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch import nn

from tests.zoo.architecture import SIDE, Architecture, Deep, Wide, at_scale, images, plain, shaken

VIT: dict[str, Any] = {
    "img_size": SIDE, "patch_size": 8, "embed_dim": Wide(16), "depth": Deep(2), "num_heads": 2,
    "mlp_ratio": 1.5,
}  # fmt: skip
CLASSES: dict[str, dict[str, Any]] = {
    "vision_transformer.VisionTransformer": VIT,
    "deit.VisionTransformerDistilled": VIT,
    "beit.Beit": VIT,
    "cait.Cait": VIT | {"depth_token_only": 1},
    "eva.Eva": VIT | {"use_rot_pos_emb": True, "swiglu_mlp": True},
    "mlp_mixer.MlpMixer": {
        "img_size": SIDE, "patch_size": 8, "embed_dim": Wide(16), "num_blocks": Deep(2),
    },
    "convnext.ConvNeXt": {
        "dims": (Wide(8), Wide(8), Wide(16), Wide(16)),
        "depths": (Deep(1), Deep(1), Deep(1), Deep(1)),
    },
    "swin_transformer.SwinTransformer": {
        "img_size": SIDE, "patch_size": 4, "embed_dim": Wide(8), "depths": (Deep(2),),
        "num_heads": (2,), "window_size": 4, "drop_path_rate": 0.0,
    },
    "metaformer.MetaFormer": {
        "dims": (Wide(8), Wide(16)), "depths": (Deep(1), Deep(1)),
    },
}  # fmt: skip


def _timm(path: str, config: dict[str, Any]) -> Architecture:
    def build(width: int, depth: int) -> nn.Module:
        module, kind = path.split(".")
        filled = at_scale(config, width, depth)
        model_class = getattr(import_module(f"timm.models.{module}"), kind)
        model: nn.Module = model_class(num_classes=4, **filled)
        return shaken(model)

    return Architecture(path.split(".")[1], "timm", build, images, plain)


def _resnet(width: int, depth: int) -> nn.Module:
    from timm.models.resnet import BasicBlock, ResNet

    sizes = (8 * width, 8 * width, 16 * width, 16 * width)
    model: nn.Module = ResNet(BasicBlock, (1, 1, 1, 1), channels=sizes, num_classes=4)
    return model


def _efficientnet(width: int, depth: int) -> nn.Module:
    from timm.models._efficientnet_builder import decode_arch_def
    from timm.models.efficientnet import EfficientNet

    stages = [["ds_r1_k3_s1_e1_c8_se0.25"], ["ir_r2_k3_s2_e4_c16_se0.25"]]
    model: nn.Module = EfficientNet(
        decode_arch_def(stages), num_classes=4, num_features=16, stem_size=8
    )
    return model


def architectures() -> list[Architecture]:
    """All that this file holds."""
    return [
        *(_timm(path, config) for path, config in CLASSES.items()),
        Architecture("ResNet", "timm", _resnet, images, plain, ("width",), couples_examples=True),
        Architecture("EfficientNet", "timm", _efficientnet, images, plain, (), True),
    ]
