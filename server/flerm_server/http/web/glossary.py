"""The words of the pages, each with one plain sentence: shown on hover, and on a page of their own.

docs/glossary.md has all of the product's words; these are the ones that pages use.
"""

from __future__ import annotations

from flerm_core.errors import NotFound

WORDS = {
    "family": "Models whose tensors correspond by name, at any width, depth or LoRA rank.",
    "recording": "What was measured over one training run, and what is known about that run.",
    "tensor": "One named weight of a model, such as layers.0.weight.",
    "band": "Tensors of one kind, such as query/key, feed-forward or norm.",
    "depth group": (
        "The tensors at one position of every block, changed together; its name has a star in "
        "place of the block number."
    ),
    "FSLR": (
        "Function-space learning rate: how far one update of one tensor alone, at learning rate "
        "1, moves the model's outputs."
    ),
    "role": "base: a small model that others take targets from. scaled: a bigger model.",
    "variant": (
        "How the run was trained. plain: one rate for all tensors. matched: each tensor at the "
        "rate that moves the outputs as far as in the base. Others: mup, matched-periodic, …"
    ),
    "seed": (
        "The number that makes a run's randomness. Runs that differ in nothing else are averaged."
    ),
    "base": "The small model whose learning rate was tuned and whose FSLRs were recorded.",
    "target": "The FSLR that a tensor is to have: that of the corresponding tensor in the base.",
    "measured": "The tensor's own FSLR, measured at learning rate 1.",
    "multiplier": "Target divided by measured FSLR, rounded to 1/16 octave.",
    "learning rate": "Of a tensor: the rate of the schedule times the tensor's multiplier.",
    "reached": (
        "Multiplier times FSLR, divided by the target: 1 means that updates move the outputs as "
        "far as in the base at that step."
    ),
    "clamped": "A multiplier held at the end of its allowed range; the target is missed.",
    "final loss": (
        "The mean of a run's last 200 logged losses; of fewer than 1,000 losses, of their last "
        "fifth."
    ),
    "measured rows": "How many of the run's steps were measured.",
    "optimum": (
        "The learning rate of least loss: the vertex of a parabola through the best rate and its "
        "two neighbours."
    ),
    "octave": "A factor of two in learning rate.",
    "shift": (
        "By how many octaves the optimum lies from the base's, with its 90 % interval over seeds. "
        "0: the base's rate carries over."
    ),
    "cost": (
        "The loss at the base's best rate, relative to the lowest loss of plain training at any "
        "rate, over the seeds that both have. 0 % or less: the base's rate is as good as a sweep "
        "of this model."
    ),
    "regret": (
        "The loss at the base's best rate, relative to the lowest loss of any variant at any rate "
        "with this model. What was not tried does not count."
    ),
    "spread": "The standard deviation over seeds.",
    "scale": "How much wider, deeper, … than the base a model is.",
    "status": (
        "running, interrupted (it may go on), completed, diverged (a loss or FSLR was not finite) "
        "or failed (an error)."
    ),
}


def meaning(word: str) -> str:
    """The sentence of a word. Raises `NotFound` for a word that has none."""
    if word not in WORDS:
        raise NotFound(f"word: {word!r} is not in the glossary of the pages")
    return WORDS[word]
