"""The colours of figures: seen on light and on dark pages, told apart by every eye."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from flerm_core.figures.style import BAND_COLOURS, BAND_DASHES, PALETTE, SEQUENTIAL, sequential
from flerm_core.parameter_bands import BANDS

# What the dichromatic eye makes of linear RGB (Machado, Oliveira, Fernandes 2009, severity 1).
EYES = {
    "usual": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


def linear(colour: str) -> np.ndarray:
    coded = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    x, y, z = np.cbrt(np.clip(XYZ @ rgb / (XYZ @ np.ones(3)), 0.008856, 1))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(one: str, other: str) -> float:
    low, high = sorted(float(XYZ[1] @ linear(each)) for each in (one, other))
    return (high + 0.05) / (low + 0.05)


def test_every_band_is_seen_on_both_themes_and_told_from_the_others_by_every_eye():
    assert min(contrast(colour, card) for colour in PALETTE for card in ("#ffffff", "#1b1f25")) >= 3
    for name, eye in EYES.items():
        seen = {
            band: lab(np.clip(np.array(eye) @ linear(colour), 0, 1))
            for band, colour in BAND_COLOURS.items()
        }
        for one, other in combinations(BANDS, 2):
            apart = float(np.linalg.norm(seen[one] - seen[other]))
            same = BAND_DASHES[one] == BAND_DASHES[other]
            assert apart >= (20 if same or name == "usual" else 7), (
                f"{one} and {other} look alike: {name}, {apart:.1f}"
            )


def test_scales_are_seen_on_both_themes_from_one_end_of_a_sequence_to_the_other():
    cards = ("#ffffff", "#1b1f25")
    assert min(contrast(colour, card) for colour in SEQUENTIAL for card in cards) >= 3
    assert sequential(2) == [SEQUENTIAL[0], SEQUENTIAL[-1]]
    assert len(set(sequential(6))) == 6
    assert sequential(0) == []
