"""Architectures of every kind are measured right, matched wide and deep, and left untouched.

The dozen most different ones run here, the others only where there is time. `make zoo` runs all,
with the packages that a test environment lacks, and writes docs/models.md.
"""

from __future__ import annotations

import pytest

from tests.zoo.architecture import Architecture
from tests.zoo.catalogue import catalogue
from tests.zoo.trial import try_architecture

QUICK = frozenset(
    {
        "GPT2LMHeadModel",
        "LlamaForCausalLM",
        "BertForMaskedLM",
        "ViTForImageClassification",
        "MambaForCausalLM",
        "residual MLP",
        "residual MLP, layer drop",
        "GRU",
        "TransformerEncoder",
        "convolutions, GroupNorm",
        "residual MLP, spectral_norm",
    }
)


def _parameters() -> list[object]:
    return [
        pytest.param(
            each,
            id=f"{each.package} {each.name}",
            marks=() if each.name in QUICK else pytest.mark.slow,
        )
        for each in catalogue()
    ]


def test_the_quick_ones_are_in_the_catalogue() -> None:
    assert QUICK - {each.name for each in catalogue()} == set()


@pytest.mark.parametrize("architecture", _parameters())
def test_an_architecture_holds_what_docs_models_promises(architecture: Architecture) -> None:
    if not architecture.installed:
        pytest.skip(f"{architecture.package} is not installed: `make zoo` has it")
    outcome = try_architecture(architecture)
    assert outcome.broken == []
