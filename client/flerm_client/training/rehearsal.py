"""One forward and backward of a probe batch before any weight moves, without a trace.

What cannot be measured is thus said before a matched run has trained a step at wrong rates.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from flerm_client.training.hidden_state import hidden_state
from flerm_client.training.measurement_failures import failure_reason, remedy
from flerm_client.training.probe import Probe
from flerm_client.training.run_remarks import RunRemarks
from flerm_core._warnings import warn
from flerm_core.errors import FlermError, MeasurementError
from flerm_core.measure.autodiff.gradient_stream import stream_gradients
from flerm_core.measure.distributed import fsdp2
from flerm_core.measure.distributed.ranks import MeasurementRanks
from flerm_core.measure.distributed.sharding import to_local
from flerm_core.measure.finite_values import runs_alone, why_not_finite
from flerm_core.measure.fslr_meter import FSLRMeter
from flerm_core.measure.measured_model import MeasuredModel
from flerm_core.measure.output_projection import as_output
from flerm_core.measure.state_guard import (
    AutocastContext,
    ForwardStart,
    RandomState,
    eager_execution,
    preserve_model_state,
)
from flerm_core.measure.tensor_versions import versions_kept
from flerm_core.measure.write_watch import is_ordinary


class Rehearsal:
    """Looks at one probe batch, once: at the call of `record` or `match`, or before the first step.

    At the call the training's autocast region and default dtype are not known: a forward counts
    that works in one of them. Ranks that share tensors cannot try several, because each forward is
    one of all ranks; and FSDP2 has no state before the first forward of the training. Where the
    model is not ready, `pending` stays true, and `before_step` looks.

    remarks: takes what there is to say of state that cannot be put back.
    raises: whether what is found at the call is raised, as a matching run does; else it is a
        warning.

    The probe keeps the batch for the first draw. Generators, buffers, attributes, modes, gradients
    and hooks on gradients are as before.
    """

    def __init__(
        self,
        model: MeasuredModel,
        ranks: MeasurementRanks,
        meter: FSLRMeter,
        probe: Probe,
        remarks: RunRemarks,
        *,
        raises: bool,
    ) -> None:
        self.pending = True
        self._remarks = remarks
        self._raises = raises
        self._model, self._ranks, self._meter, self._probe = model, ranks, meter, probe

    def at_call(self) -> None:
        """Raises, on every rank alike, or warns of what cannot be measured.

        Returns without a look where the model is not ready.
        """
        if self._model.sharding is not None or not runs_alone(self._model.module, self._ranks):
            return
        regions = [
            self._meter.autocast,
            AutocastContext(((self._model.device.type, torch.bfloat16),)),
        ]
        dtype = next(iter(self._model.parameters.values())).dtype
        if dtype != torch.get_default_dtype() and dtype.is_floating_point:
            regions.append(AutocastContext((), dtype))
        try:
            self._look(regions)
        except Exception as error:
            self.pending = False
            if self._raises or self._ranks.broken:
                self._probe.close()
                raise
            if self._ranks.is_rank0:
                warn(f"nothing could be measured now: {str(error).rstrip('.')}")

    def before_step(self) -> None:
        """The same where it is pending, in the autocast region of the training's forward."""
        if self.pending:
            self._look([self._meter.autocast])

    def _look(self, regions: list[AutocastContext]) -> None:
        with self._prepared_model():
            batch: Any = None
            problem: Exception | None = None
            try:
                batch = self._probe.peek()
            except Exception as error:
                problem = error
            self._agree(problem)
            model = self._model
            kept = _parameters_to_keep(model)
            start = ForwardStart(model.module, kept)
            watched = [] if model.sharding is not None else model.module.parameters()
            with versions_kept(kept), model.watch.kept(watched):
                for region in regions:
                    found = self._try(batch, region)
                    self._restore(start)
                    if isinstance(found, Tensor):
                        problem = self._look_for_hidden_state(batch, region, start, found)
                        break
                    problem = problem or found
                self._restore(start)
            model.written.extend(start.written | dict.fromkeys(model.watch.written))
            if problem is not None and self._ranks.lockstep:
                self._ranks.fail_all(problem)
            self._agree(problem)
        self.pending = False

    def _restore(self, start: ForwardStart) -> None:
        """Sets everything back to `start`, to make another forward."""
        start.restore()
        self._model.watch.restore()

    def _agree(self, problem: Exception | None) -> None:
        """Raises the problem of any rank on every rank. One all-reduce, none for one process."""
        if self._ranks.single_process:
            if problem is not None:
                raise problem
            return
        flag = torch.tensor([float(problem is not None)], device=self._model.device)
        if self._ranks.sum(flag).item():
            self._ranks.raise_on_all(problem)

    def _try(self, batch: Any, region: AutocastContext) -> Tensor | Exception:
        """The outputs of `batch` in the autocast region, or what goes wrong with it."""
        module = self._model.module
        try:
            with region.open(self._model.device.type):
                outputs = self._watched_outputs(batch)
                if not bool(outputs.isfinite().all()):
                    may_run = runs_alone(module, self._ranks)
                    reason = why_not_finite(self._model, batch, may_run=may_run)
                    raise reason or MeasurementError("outputs of a probe batch are not finite")
                self._differentiate(outputs)
        except FlermError as error:
            fsdp2.reset_after_error(module)
            return error
        except Exception as error:
            fsdp2.reset_after_error(module)
            made = MeasurementError(
                f"a batch of the probe cannot be measured: {failure_reason(module, error)}; "
                f"{remedy(error, 'kronecker')}"
            )
            made.__cause__ = error
            return made
        return to_local(outputs)

    def _watched_outputs(self, batch: Any) -> Tensor:
        """The outputs of `batch`.

        Where the model runs only while no writes are watched, they are watched no longer.
        """
        model = self._model
        start = RandomState()
        try:
            return model.watched_outputs(batch)
        except Exception:
            if not model.watch.usable or self._ranks.lockstep:
                raise
            start.restore()
            outputs = as_output(model.output(model.module, batch))
            model.watch.usable = False
            return outputs

    def _look_for_hidden_state(
        self, batch: Any, region: AutocastContext, start: ForwardStart, first: Tensor
    ) -> Exception | None:
        """Says where the forward is no function of batch and weights; returns what goes wrong.

        first: the outputs of a forward before, this rank's part.
        Ranks in lockstep look closer all at once, because each forward is one of all ranks.
        """
        module, ranks = self._model.module, self._ranks

        def forward() -> Tensor:
            # FSDP2 waits for a backward pass after each forward that could have one.
            with region.open(self._model.device.type), torch.set_grad_enabled(not ranks.lockstep):
                outputs = to_local(self._model.watched_outputs(batch))
            self._restore(start)
            return outputs

        def on_any_rank(differs: bool) -> bool:
            if not ranks.lockstep:
                return differs
            flag = torch.tensor([float(differs)], device=self._model.device)
            return bool(ranks.sum(flag).item())

        try:
            if sentence := hidden_state(module, forward, first, on_any_rank):
                self._remarks.say(sentence)
        except Exception as error:
            return error
        return None

    def _differentiate(self, outputs: Tensor) -> None:
        """Raises where the outputs have no derivative with respect to the tensors that train."""
        trained = [p for p in self._model.parameters.values() if p.requires_grad]
        if not trained:
            return  # other tensors are trained in turn, and these are switched off now
        if not outputs.requires_grad:
            raise MeasurementError(
                "the outputs do not depend on the weights in a way that has a derivative: is "
                "there a no_grad() or detach() on their way? output= says what is computed"
            )
        stream_gradients(outputs, torch.ones_like(outputs), self._model, lambda *_: None)

    @contextmanager
    def _prepared_model(self) -> Iterator[None]:
        meter, module = self._meter, self._model.module
        meter.measuring = True
        try:
            with ExitStack() as stack:
                stack.enter_context(eager_execution())
                stack.enter_context(preserve_model_state(module))
                stack.enter_context(fsdp2.mean_reduction(module))
                stack.enter_context(meter.randomness.active())
                yield
        finally:
            meter.measuring = False
            fsdp2.reshard(module)


def _parameters_to_keep(model: MeasuredModel) -> list[nn.Parameter]:
    """The parameters whose values are kept, to find those that a forward writes into.

    These are the measured ones, and as much again of the others, the smallest first: what is frozen
    may be many times as big (LoRA). A write into the rest is seen by `MeasuredModel.watch`, unless
    no operator of torch makes it. Sharded ones are left out: a forward writes into gathered copies.
    """
    measured = {id(parameter) for parameter in model.parameters.values()}
    ordinary = [each for each in model.module.parameters() if is_ordinary(each)]
    kept = [each for each in ordinary if id(each) in measured]
    room = sum(each.nbytes for each in kept)
    for each in sorted((p for p in ordinary if id(p) not in measured), key=lambda p: p.nbytes):
        room -= each.nbytes
        if room < 0:
            break
        kept.append(each)
    return kept
