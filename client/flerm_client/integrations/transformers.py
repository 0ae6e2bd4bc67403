"""FLeRM in Hugging Face's Trainer, as a callback.

FLeRMCallback(mode="record", family="team/decoder", registry="grpc://127.0.0.1:50051").add_to(trainer)
"""

from __future__ import annotations

import base64
import functools
import sys
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState, PrinterCallback, ProgressCallback

from flerm_client.integrations._checkpoint import collect_state
from flerm_client.integrations._session import CallbackState, Mode
from flerm_client.integrations._step_examples import step_examples
from flerm_core._warnings import register_caller_package
from flerm_core.errors import InvalidInput

register_caller_package("transformers")


class FLeRMCallback(CallbackState, TrainerCallback, ExportableState):  # type: ignore[misc]  # untyped
    """Records, or matches, each run of `trainer.train()`.

    mode: "record" or "match". None: record, match or do nothing, as the environment says
        (`FLeRM.auto`).
    family: the models whose parameter names correspond. None: the environment's.
    keywords: those of `FLeRM.record`, `match` or `auto`. What they leave open is found: the probe
        in the training data (the training's own loader is not read), the outputs in `.logits`.

    `.flerm` is the FLeRM of the run, None before the first run. Its state is part of the
    checkpoints' trainer_state.json, and a resumed run goes on from there.

    The losses are those that `Trainer.training_step` returns. FSLRs and learning rates go to the
    Trainer's loggers.

    Raises `InvalidInput` for an unknown mode or keyword, and for a second callback on the same
    Trainer; `train()` raises as `FLeRM.record` and `FLeRM.match` do.
    """

    def __init__(self, mode: Mode = None, *, family: str | None = None, **keywords: Any) -> None:
        super().__init__(mode, {"family": family} | keywords)
        self._trainer: weakref.ref[Trainer] | None = None  # the one that trains at present
        self._joined: weakref.WeakSet[Trainer] = weakref.WeakSet()
        self._losses: list[Tensor] = []  # of the micro-batches of the step at hand
        self._running = False
        self._metrics: dict[str, float] = {}
        self._checkpoint: tuple[int, bytes] | None = None  # the step, and the state after it

    def add_to(self, trainer: Trainer) -> FLeRMCallback:
        """Adds this callback to `trainer`, as `Trainer(callbacks=[...])` does; returns itself."""
        _refuse_second_callback(
            isinstance(each, FLeRMCallback) for each in trainer.callback_handler.callbacks
        )
        self._join(trainer)
        trainer.add_callback(self)
        return self

    def _join(self, trainer: Trainer) -> None:
        """From now on the callback has the losses of `trainer`, and knows when it raises."""
        self._refuse_restored_callbacks(trainer.args)
        self._trainer = weakref.ref(trainer)
        if self._idle or trainer in self._joined:
            return
        self._joined.add(trainer)
        self._end_when_training_raises(trainer)
        inner = trainer.training_step

        @functools.wraps(inner)
        def training_step(*args: Any, **kwargs: Any) -> Tensor:
            # The loss of a micro-batch, divided by the number of micro-batches.
            loss: Tensor = inner(*args, **kwargs)
            if self._running:
                self._losses.append(loss.detach())
            return loss

        trainer.training_step = training_step

    # The run

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Joins the Trainer that is being made. Raises `InvalidInput` for wrong arguments."""
        self._join(_calling_trainer())

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attaches a FLeRM: model and optimiser are wrapped, weights and states are loaded."""
        if self._idle:
            return
        trainer = _calling_trainer()
        self._join(trainer)  # `trainer.add_callback` calls no method of a callback
        model: nn.Module = kwargs["model"]
        stored = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        _refuse_second_callback(stored if isinstance(stored, list) else ())
        checkpoint = stored["attributes"].get("checkpoint") if state.global_step else None
        loader, accumulation = kwargs["train_dataloader"], args.gradient_accumulation_steps
        rank_batch = state.train_batch_size or args.train_batch_size
        total = trainer.get_total_train_batch_size(args)
        self._attach(
            model,
            kwargs["optimizer"],
            loader=loader,
            probe_batch_size=rank_batch,
            examples=step_examples(loader, accumulation, total // (rank_batch * accumulation)),
            total_steps=state.max_steps,
            checkpoint=None if checkpoint is None else base64.b64decode(checkpoint),
        )
        self._losses.clear()
        self._running = True

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Logs the tokens and the loss of the step that follows.

        The loss is the sum over the micro-batches.
        """
        if self.flerm is None:
            return
        self.flerm.log(tokens=state.num_input_tokens_seen or None)
        if self._losses:
            self.flerm.log(loss=torch.stack(self._losses).sum())
            self._losses.clear()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Notes what was measured, at this step's rates: the schedule steps before its end."""
        self._metrics = self._new_metrics()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """After a measurement, sends its FSLRs and rates to the loggers."""
        trainer = None if self._trainer is None else self._trainer()
        if trainer is not None and self._metrics:
            due = control.should_log
            with _without_printers(trainer):
                trainer.log(self._metrics)
            control.should_log = due  # the loss is still to be logged
        self._prepare_checkpoint(control.should_save)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A checkpoint may follow."""
        self._prepare_checkpoint(control.should_save)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A checkpoint may follow.

        With `save_strategy="best"` the Trainer decides after this event, and has none between.
        """
        self._prepare_checkpoint(control.should_save or args.save_strategy == "best")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ends the recording."""
        self._end("completed")

    def _end_when_training_raises(self, trainer: Trainer) -> None:
        """Ends the recording of a `train()` that raises, for which the Trainer has no event."""
        inner, ours = trainer.train, weakref.ref(self)

        @functools.wraps(inner)
        def train(*args: Any, **kwargs: Any) -> Any:
            try:
                return inner(*args, **kwargs)
            except BaseException as error:
                if (callback := ours()) is not None:
                    stopped = isinstance(error, KeyboardInterrupt)
                    callback._end("interrupted" if stopped else "failed")
                raise

        trainer.train = train

    # Checkpoints

    def state(self) -> dict[str, Any]:
        """This run's part of trainer_state.json, which a resumed run reads when it begins."""
        if self.flerm is None:
            return {"args": {}, "attributes": {}}
        stale = self._checkpoint is None or self._checkpoint[0] != self.flerm.steps
        self._prepare_checkpoint(stale)
        assert self._checkpoint is not None
        encoded = base64.b64encode(self._checkpoint[1]).decode()
        return {"args": {}, "attributes": {"checkpoint": encoded}}

    def _prepare_checkpoint(self, due: bool) -> None:
        # The Trainer asks rank 0 alone for the state. The other ranks' parts are collected here,
        # where all ranks take part.
        if due and self.flerm is not None:
            self._checkpoint = (self.flerm.steps, collect_state(self.flerm))

    def _refuse_restored_callbacks(self, args: TrainingArguments) -> None:
        if args.restore_callback_states_from_checkpoint:
            raise InvalidInput(
                "restore_callback_states_from_checkpoint=True is not allowed with FLeRMCallback: "
                "it would build the callback anew out of JSON; leave it False, "
                "the callback takes its state from the checkpoint by itself"
            )

    def _end(self, status: str) -> None:
        self._running = False
        super()._end(status)


def _calling_trainer() -> Trainer:
    """The Trainer whose method calls the callback: events have no argument that names it."""
    frame = sys._getframe(1)
    while not isinstance(caller := frame.f_locals.get("self"), Trainer):
        assert frame.f_back is not None, "only a Trainer calls its callbacks"
        frame = frame.f_back
    return caller


def _refuse_second_callback(others: Iterable[Any]) -> None:
    if any(others):
        raise InvalidInput(
            "the Trainer has an FLeRMCallback already, and its checkpoints have a place for one: "
            "use one, or a second Trainer"
        )


@contextmanager
def _without_printers(trainer: Trainer) -> Iterator[None]:
    """Inside, callbacks that print are not called: only loggers get the numbers of each tensor."""
    everyone = trainer.callback_handler.callbacks
    trainer.callback_handler.callbacks = [
        each for each in everyone if not isinstance(each, PrinterCallback | ProgressCallback)
    ]
    try:
        yield
    finally:
        trainer.callback_handler.callbacks = everyone
