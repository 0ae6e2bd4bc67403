"""FLeRM in Hugging Face's Trainer, as a callback.

FLeRMCallback(mode="record", family="team/decoder", registry="grpc://127.0.0.1:50051").add_to(trainer)
"""

from __future__ import annotations

import base64
import functools
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState, PrinterCallback, ProgressCallback

from flerm_client.flerm import FLeRM
from flerm_client.integrations._checkpoint import collect_state, restore
from flerm_client.integrations._outputs import loss_in, output_of
from flerm_client.integrations._session import UnloggedMetrics, attach, check_keywords
from flerm_client.training.step_wrapper import CopySafeHook
from flerm_core._warnings import register_caller_package, warn
from flerm_core.errors import InvalidInput

register_caller_package("transformers")


class FLeRMCallback(TrainerCallback, ExportableState):  # type: ignore[misc]  # Any: its types are not read
    """Records, or matches, each run of `trainer.train()`. `keywords` are those of `FLeRM.record` or `FLeRM.match`; `family`
    is needed.

    What they leave open is found: the probe in the training data (the training's own loader is not touched), the outputs in
    `.logits`. `.flerm` is the FLeRM of the run, None before its first. Its state goes into the checkpoints' trainer_state.json,
    and a resumed run goes on from there.

    `add_to(trainer)` takes the losses that `Trainer.training_step` returns, and sends FSLRs and learning rates to the loggers,
    through `Trainer.log`. `Trainer(callbacks=[...])` gives a callback no way to either: the loss is then that in what the model
    returns, or without one, late, that in the Trainer's log.

    Raises `InvalidInput` for a mode or keyword that there is not, or beside another one on the same Trainer; `train()` raises
    what `FLeRM.record` and `FLeRM.match` do.
    """

    def __init__(self, mode: Literal["record", "match"], *, family: str, **keywords: Any) -> None:
        self._mode = mode
        self._keywords = {"family": family} | keywords
        check_keywords(mode, self._keywords)
        self.flerm: FLeRM | None = None
        self._trainer: weakref.ref[Trainer] | None = None
        self._forward: torch.utils.hooks.RemovableHandle | None = None
        self._losses: list[Tensor] = []
        self._summed = False
        self._told = False  # the losses of steps: on_log has none to add
        self._running = False
        self._asking = False
        self._values: dict[str, float] = {}
        self._saved: tuple[int, bytes] | None = None

    def add_to(self, trainer: Trainer) -> FLeRMCallback:
        """Adds this callback to `trainer`, and lets it hear the trainer's losses and speak to its loggers."""
        _refuse_company(
            isinstance(each, FLeRMCallback) for each in trainer.callback_handler.callbacks
        )
        self._refuse_rebuilding(trainer.args)
        self._trainer = weakref.ref(trainer)
        trainer.add_callback(self)
        inner = trainer.training_step

        @functools.wraps(inner)
        def training_step(*args: Any, **kwargs: Any) -> Tensor:
            loss: Tensor = inner(*args, **kwargs)  # of a micro-batch, divided by their number
            if self._running:
                self._losses.append(loss.detach())
            return loss

        trainer.training_step = training_step
        return self

    # The run

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuses what cannot work, before anything is trained."""
        self._refuse_rebuilding(args)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begins the FLeRM: model and optimiser are wrapped, weights and optimiser state loaded."""
        self._end("interrupted")
        model: nn.Module = kwargs["model"]
        stored = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        _refuse_company(stored if isinstance(stored, list) else ())
        checkpoint = stored["attributes"].get("checkpoint") if state.global_step else None
        keywords = dict(self._keywords)
        output = keywords.get("output", output_of)

        def asked(model: nn.Module, batch: Any) -> Any:
            self._asking = True
            try:
                return output(model, batch)
            finally:
                self._asking = False

        keywords["output"] = asked
        size = state.train_batch_size or args.train_batch_size
        loader, steps = kwargs["train_dataloader"], state.max_steps
        self.flerm = attach(
            self._mode,
            model,
            kwargs["optimizer"],
            keywords,
            loader=loader,
            batch_size=size,
            total_steps=steps,
        )
        if checkpoint is not None:
            restore(self.flerm, base64.b64decode(checkpoint))
        self._news = UnloggedMetrics(self.flerm)
        self._losses.clear()
        self._told = False
        self._running = True
        if self._trainer is not None:
            self._summed = True
            return
        self._forward = model.register_forward_hook(
            CopySafeHook(self._see_outputs), with_kwargs=True
        )
        loggers = [name for name in args.report_to if name != "none"]
        if loggers:
            warn(
                f"FSLRs will not reach {', '.join(loggers)}: use FLeRMCallback(...).add_to(trainer) instead of callbacks=[...]"
            )

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tokens and loss of the step that follows: over micro-batches the losses' sum where each was divided by all, else the
        mean."""
        if self.flerm is None:
            return
        self.flerm.log(tokens=state.num_input_tokens_seen or None)
        if self._losses:
            losses = torch.stack(self._losses)
            self.flerm.log(loss=losses.sum() if self._summed else losses.mean())
            self._losses.clear()
            self._told = True

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """What was measured, at the rates of this step: the schedule moves on before it ends."""
        self._values = {} if self.flerm is None else self._news.pop()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """After a measurement: its FSLRs and rates to the loggers."""
        trainer = None if self._trainer is None else self._trainer()
        if trainer is not None and self._values:
            due = control.should_log
            with _printing_nothing(trainer):
                trainer.log(self._values)
            control.should_log = due  # logging ours is not yet logging the loss
        self._prepare_checkpoint(control.should_save)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A checkpoint may follow."""
        self._prepare_checkpoint(control.should_save)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A checkpoint may follow: with `save_strategy="best"` it is decided after this, and there is no event between."""
        self._prepare_checkpoint(control.should_save or args.save_strategy == "best")

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The loss as the Trainer reports it, where nothing else tells it (compute_loss_func, label smoothing)."""
        if self.flerm is not None and not self._told and "loss" in kwargs["logs"]:
            self.flerm.log(loss=kwargs["logs"]["loss"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ends the recording."""
        self._end("completed")

    # Checkpoints

    def state(self) -> dict[str, Any]:
        """What trainer_state.json keeps of this run; it is read at the beginning of a resumed one."""
        if self.flerm is None:
            return {"args": {}, "attributes": {}}
        self._prepare_checkpoint(self._saved is None or self._saved[0] != self.flerm.steps)
        assert self._saved is not None
        return {"args": {}, "attributes": {"checkpoint": base64.b64encode(self._saved[1]).decode()}}

    def _prepare_checkpoint(self, due: bool) -> None:
        # The Trainer asks rank 0 alone for it; what the other ranks have is collected while all are here.
        if due and self.flerm is not None:
            self._saved = (self.flerm.steps, collect_state(self.flerm))

    def _refuse_rebuilding(self, args: TrainingArguments) -> None:
        if args.restore_callback_states_from_checkpoint:
            raise InvalidInput(
                "restore_callback_states_from_checkpoint=True is not allowed with FLeRMCallback: it would build the callback "
                "anew out of JSON; leave it False, the callback takes its state from the checkpoint by itself"
            )

    # The model

    def _see_outputs(
        self, model: nn.Module, args: Any, kwargs: dict[str, Any], returned: Any
    ) -> None:
        if self._asking or not (model.training and torch.is_grad_enabled()):
            return
        loss = loss_in(returned)
        if loss is not None:
            self._losses.append(loss)
            self._summed = kwargs.get("num_items_in_batch") is not None

    def _end(self, status: str) -> None:
        self._running = False
        if self._forward is not None:
            self._forward.remove()
            self._forward = None
        if self.flerm is not None:
            self.flerm.close(status=status)


def _refuse_company(others: Iterable[Any]) -> None:
    if any(others):
        raise InvalidInput(
            "the Trainer has an FLeRMCallback already, and its checkpoints have a place for one: use one, or a second Trainer"
        )


@contextmanager
def _printing_nothing(trainer: Trainer) -> Iterator[None]:
    """Two numbers a tensor are for loggers: what prints logs, on a console or beside the progress bar, does not hear them."""
    everyone = trainer.callback_handler.callbacks
    trainer.callback_handler.callbacks = [
        each for each in everyone if not isinstance(each, PrinterCallback | ProgressCallback)
    ]
    try:
        yield
    finally:
        trainer.callback_handler.callbacks = everyone
