"""Weight decay beside matched rates: multiplied with them, or independent (docs/estimators.md)."""

from __future__ import annotations

from torch.optim import Optimizer

from flerm_core.errors import InvalidInput

DECAYS = ("coupled", "independent")

# Optimisers that take η·λ·W off the weights apart from the gradient, and have no option that says
# so. By the beginning of the class name: other packages have variants in 8 bits, and so on.
_DECOUPLED = ("AdamW", "PagedAdamW", "Muon", "Lion", "PagedLion")


def is_independent(mode: str, optimizers: list[Optimizer]) -> bool:
    """Whether there is a weight decay, and `mode` keeps it apart from the multipliers.

    Raises `InvalidInput` for an unknown `mode`, and for "independent" where an optimiser adds the
    decay to the gradient: the decay then goes through momentum and normalisation, and cannot be
    told apart from the rest of the step.
    """
    if mode not in DECAYS:
        raise InvalidInput(
            f"weight_decay={mode!r} is not allowed; {' and '.join(map(repr, DECAYS))} are"
        )
    found = False
    for each in optimizers if mode == "independent" else ():
        for group in each.param_groups:
            decay = float(group.get("weight_decay") or 0.0)
            if decay and not _decoupled(each, group):
                raise InvalidInput(
                    f"weight_decay='independent' is not allowed with {type(each).__name__}"
                    f"(weight_decay={decay:g}), which adds the decay to the gradient; "
                    "optimisers that keep it apart (AdamW, Muon) are, or a decay of 0"
                )
            found = found or decay != 0.0
    return found


def _decoupled(optimizer: Optimizer, group: dict[str, object]) -> bool:
    if "decoupled_weight_decay" in group:
        return bool(group["decoupled_weight_decay"])
    return any(kind.__name__.startswith(_DECOUPLED) for kind in type(optimizer).__mro__)
