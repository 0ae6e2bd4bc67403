"""Image classifiers of torchvision, cut down."""

from __future__ import annotations

from torch import nn

from tests.zoo.architecture import SIDE, Architecture, images, plain, shaken


def _vision_transformer(width: int, depth: int) -> nn.Module:
    from torchvision.models import VisionTransformer

    model: nn.Module = VisionTransformer(
        SIDE, 8, 2 * depth, 2, 16 * width, 24 * width, num_classes=4
    )
    return shaken(model)


def _swin(width: int, depth: int) -> nn.Module:
    from torchvision.models import SwinTransformer

    model: nn.Module = SwinTransformer(
        [4, 4], 8 * width, [2 * depth], [2], [2, 2], num_classes=4, stochastic_depth_prob=0.0
    )
    return model


def _convnext(width: int, depth: int) -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    model: nn.Module = ConvNeXt([CNBlockConfig(8 * width, None, 2 * depth)], num_classes=4)
    return model


def _resnet(width: int, depth: int) -> nn.Module:
    from torchvision.models.resnet import BasicBlock, ResNet

    model: nn.Module = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=4)
    return model


def _mobilenet(width: int, depth: int) -> nn.Module:
    from torchvision.models import MobileNetV2

    stages = [[1, 8, 1, 1], [4, 16, 2, 2]]
    model: nn.Module = MobileNetV2(4, 0.25, inverted_residual_setting=stages, dropout=0.0)
    return model


def _shufflenet(width: int, depth: int) -> nn.Module:
    from torchvision.models import ShuffleNetV2

    sizes = [8, *(16 * width, 16 * width, 16 * width), 32 * width]
    model: nn.Module = ShuffleNetV2([2, 1, 1], sizes, num_classes=4)
    return model


def _densenet(width: int, depth: int) -> nn.Module:
    from torchvision.models import DenseNet

    model: nn.Module = DenseNet(4 * width, (2, 2), 8 * width, num_classes=4)
    return model


def architectures() -> list[Architecture]:
    """All that this file holds. Those with BatchNorm couple the examples of a batch."""
    wide, none = ("width",), ()
    return [
        Architecture("VisionTransformer", "torchvision", _vision_transformer, images, plain),
        Architecture("SwinTransformer", "torchvision", _swin, images, plain),
        Architecture("ConvNeXt", "torchvision", _convnext, images, plain),
        Architecture("ResNet", "torchvision", _resnet, images, plain, none, True),
        Architecture("MobileNetV2", "torchvision", _mobilenet, images, plain, none, True),
        Architecture("ShuffleNetV2", "torchvision", _shufflenet, images, plain, wide, True),
        Architecture("DenseNet", "torchvision", _densenet, images, plain, wide, True),
    ]
