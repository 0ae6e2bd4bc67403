"""Why a measurement is not finite: the weights, the buffers, the update, the batch, or outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from flerm_core.errors import MeasurementError, NotFinite, join_names
from flerm_core.measure.autodiff.module_hooks import named_hookable
from flerm_core.measure.distributed.ranks import MeasurementRanks
from flerm_core.measure.distributed.sharding import to_local
from flerm_core.measure.measured_model import MeasuredModel
from flerm_core.measure.output_projection import floating_tensors, tensors_in
from flerm_core.measure.update.weight_update import WeightUpdate
from flerm_core.parameter_names import canonical

_MOST = 6  # names in one sentence


def why_not_finite(
    model: MeasuredModel,
    batch: Any,
    update: WeightUpdate | None = None,
    *,
    may_run: bool,
) -> MeasurementError | None:
    """The error to raise where outputs of `batch`, or statistics from it, are not finite.

    `NotFinite` where the cause lies in the training: weights that are not finite, buffers that hold
    NaN (infinities may be a mask), or an update that leaves weights not finite. Else the cause is
    the batch or the outputs, and the error is a plain `MeasurementError`. None where all outputs
    are finite, so that a gradient is not: the FSLRs of other tensors are right.

    update: the step at hand, inside `at_old_weights`; None where there is none.
    may_run: whether a forward of this rank alone is possible, to see which outputs are not finite.

    Looks at this rank's part of tensors that are sharded.
    """
    module = model.module
    if names := _wrong(module.named_parameters(), torch.isfinite):
        return NotFinite(f"weights of the model are not finite: {names}")
    if names := _wrong(module.named_buffers(), _is_number):
        return NotFinite(f"buffers of the model hold NaN: {names}")
    if update is not None and (names := _wrong(update.new_weights().items(), torch.isfinite)):
        return NotFinite(f"this step has made weights of the model not finite: {names}")
    numbered = ((f"tensor {at}", each) for at, each in enumerate(tensors_in(batch), start=1))
    if wrong := _wrong(numbered, _is_number):
        return MeasurementError(
            f"a batch of the probe holds NaN: {wrong}; leave such batches out of probe="
        )
    where = _first_outputs(model, batch) if may_run else "outputs of a probe batch are not finite"
    if not where:
        return None
    return MeasurementError(
        f"{where}, although the weights, the buffers and the batch are: does a mask write "
        "infinities into the outputs, or is a value too large for its dtype? output= can leave a "
        "mask out, and probe= such examples"
    )


def runs_alone(module: nn.Module, ranks: MeasurementRanks) -> bool:
    """Whether a forward of one rank waits for no other rank."""
    synchronised = any(isinstance(each, nn.SyncBatchNorm) for each in module.modules())
    return ranks.single_process or not (synchronised or ranks.lockstep)


def _wrong(tensors: Iterable[tuple[str, Tensor]], good: Callable[[Tensor], Tensor]) -> str:
    """The names of those tensors of which a value is not `good`, and how many; "" for none."""
    found = []
    for name, tensor in tensors:
        local = to_local(tensor)
        # A subclass, such as quantised weights, may have no such operator.
        if type(local) is Tensor and local.is_floating_point() and not local.is_meta:
            wide = local.float() if local.element_size() == 1 else local
            if count := int((~good(wide)).sum()):
                found.append(f"{canonical(name)} ({count} of {wide.numel()} values)")
    return join_names(found, most=_MOST) if found else ""


def _is_number(values: Tensor) -> Tensor:
    return ~values.isnan()


@torch.no_grad()
def _first_outputs(model: MeasuredModel, batch: Any) -> str:
    """That outputs are not finite: how many, of which examples, and from which module on.

    Empty where all are finite.
    """
    first: list[str] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not first and not all(bool(p.isfinite().all()) for p in floating_tensors(output)):
                first.append(f", first in {name or 'the model'} ({type(module).__name__})")

        return hook

    handles = [
        each.register_forward_hook(note(name)) for name, each in named_hookable(model.module)
    ]
    try:
        outputs = model.outputs(batch)
    finally:
        for handle in handles:
            handle.remove()
    wrong = ~outputs.isfinite()
    if not bool(wrong.any()):
        return ""
    examples = wrong.flatten(1).any(1) if wrong.ndim > 1 else wrong
    named = join_names(examples.nonzero().flatten().tolist(), most=_MOST)
    which = "" if bool(examples.all()) else f"for its examples {named} (dimension 0)"
    return " ".join(
        f"{int(wrong.sum())} of {outputs.numel()} outputs of a probe batch are not finite {which}"
        f"{''.join(first)}".split()
    ).replace(" ,", ",")
