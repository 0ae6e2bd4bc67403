"""scikit-learn's handwritten digits: 1,797 images of 8 × 8 that are installed with the package."""

from __future__ import annotations

from functools import lru_cache

import torch

from flerm_core.errors import Unsupported
from flerm_experiments.workloads.images import ImageData, Images
from flerm_experiments.workloads.init import generator

TRAINING_EXAMPLES = 1536
"""The number of images to train on: 24 batches of 64. The other 261 are for probes."""


@lru_cache(maxsize=1)
def load_digits_images() -> Images:
    """The images, flattened and standardised.

    From each pixel its mean over the training part is subtracted, and the rest is divided by the
    pixel's standard deviation over the training part.

    A standard deviation below one grey level (of 16) counts as one grey level. Otherwise a pixel
    that is blank in almost all images would have a huge value in the few other images.

    Raises `Unsupported` where scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise Unsupported(
            "the digits need the package scikit-learn: pip install 'flerm[workloads]'"
        ) from error
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=generator(0, "digits split"))
    inputs = torch.from_numpy(images).float()[order]
    targets = torch.from_numpy(labels).long()[order]
    mean, std = inputs[:TRAINING_EXAMPLES].mean(0), inputs[:TRAINING_EXAMPLES].std(0)
    inputs = (inputs - mean) / std.clamp(min=1.0)
    return Images(
        inputs[:TRAINING_EXAMPLES],
        targets[:TRAINING_EXAMPLES],
        inputs[TRAINING_EXAMPLES:],
        targets[TRAINING_EXAMPLES:],
    )


DIGITS = ImageData("digits", "scikit-learn digits", 64, load_digits_images)
