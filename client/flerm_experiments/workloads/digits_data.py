"""scikit-learn's handwritten digits: 1,797 images of 8 × 8, installed with the package, nothing to download."""

from __future__ import annotations

from functools import lru_cache

import torch
from sklearn.datasets import load_digits

from flerm_experiments.workloads.images import ImageData, Images
from flerm_experiments.workloads.init import generator

TRAINING = 1536
"""Examples to train on: 24 batches of 64. The other 261 are for probes."""


@lru_cache(maxsize=1)
def digits() -> Images:
    """The data, flattened; each pixel less its mean over the training part, divided by its deviation there.

    Deviations below one grey level (of 16) count as one: a pixel that is hardly ever inked would be huge where it is.
    """
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=generator(0, "digits split"))
    inputs = torch.from_numpy(images).float()[order]
    targets = torch.from_numpy(labels).long()[order]
    mean, std = inputs[:TRAINING].mean(0), inputs[:TRAINING].std(0)
    inputs = (inputs - mean) / std.clamp(min=1.0)
    return Images(inputs[:TRAINING], targets[:TRAINING], inputs[TRAINING:], targets[TRAINING:])


DIGITS = ImageData("digits", "scikit-learn digits", 64, digits)
