"""FLeRM in Lightning's Trainer, as a callback.

trainer = lightning.Trainer(callbacks=[FLeRMCallback(mode="record", family="team/decoder")])
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from flerm_client.integrations._checkpoint import collect_state
from flerm_client.integrations._session import CallbackState, Mode
from flerm_client.integrations._step_examples import step_examples
from flerm_client.training.forked_reader import ForkedReader
from flerm_core._warnings import register_caller_package
from flerm_core.errors import InvalidInput
from flerm_core.measure.attribute_state import own_attributes_kept

register_caller_package("lightning")


class FLeRMCallback(CallbackState, Callback):  # type: ignore[misc]  # lightning is untyped
    """Records, or matches, each `trainer.fit()`.

    mode: "record" or "match". None: record, match or do nothing, as the environment says
        (`FLeRM.auto`).
    family: the models whose parameter names correspond. None: the environment's.
    keywords: those of `FLeRM.record`, `match` or `auto`. What they leave open is found: the probe
        in the training data (the training's own loader is not read); the outputs as
        `module(inputs)` of a batch `inputs`, `(inputs, targets)` or a mapping (`.logits` of what is
        returned); the loss as it goes into backward.

    Batches of a loader, which is the training's own, or one as `probe=`, go through what the
    trainer's go through before `training_step`: the batch transfer hooks of module and data module,
    such as `on_after_batch_transfer`. The trainer's precision holds for any probe.

    FSLRs and learning rates go to the trainer's loggers. `.flerm` is the FLeRM of the run, None
    before the first run. Its state is part of Lightning's checkpoints, and `fit(ckpt_path=...)`
    goes on from there.

    Raises `InvalidInput` for an unknown mode or keyword; `fit()` raises as `FLeRM.record` and
    `FLeRM.match` do.
    """

    def __init__(self, mode: Mode = None, *, family: str | None = None, **keywords: Any) -> None:
        super().__init__(mode, {"family": family} | keywords)
        self._checkpoint: bytes | None = None
        self._fitting = False
        self._loss: Tensor | None = None

    @property
    def state_key(self) -> str:
        """The callback's key in a checkpoint: one for each family and mode."""
        return self._generate_state_key(mode=self._mode, family=self._keywords["family"])  # type: ignore[no-any-return]

    # The run

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begins a fit, a test, …: only a fit goes on from a checkpoint."""
        self._fitting = stage == "fit"
        self._checkpoint = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attaches a FLeRM: model and optimisers are wrapped, weights and states are loaded."""
        if self._idle:
            return
        has_forward = type(pl_module).forward is not LightningModule.forward
        if "output" not in self._keywords and not has_forward:
            raise InvalidInput(
                f"{type(pl_module).__name__} has no forward: say what its outputs are, "
                "for instance output=lambda module, batch: module.net(batch[0])"
            )
        optimizers = trainer.optimizers if len(trainer.optimizers) > 1 else trainer.optimizers[0]
        checkpoint, self._checkpoint = self._checkpoint, None
        self._attach(
            trainer.strategy.model,
            optimizers,
            loader=trainer.train_dataloader,
            prepare=self._preparation(trainer),
            examples=_step_examples(trainer, pl_module),
            checkpoint=checkpoint,
        )
        self._loss = None

    def _preparation(self, trainer: Trainer) -> Callable[[Any], Any]:
        """What the trainer does to a batch of its loader before `training_step` gets the batch.

        To a probe that is no loader only what its precision needs: who made those batches by hand
        has prepared them.
        """
        probe = self._keywords.get("probe")
        is_loader = probe is None or isinstance(probe, DataLoader | ForkedReader)

        def prepare(batch: Any) -> Any:
            batch = trainer.precision_plugin.convert_input(batch)
            if not is_loader:
                return batch
            # A measurement puts the module's attributes back, and not a data module's.
            holder = getattr(trainer, "datamodule", None)
            with nullcontext() if holder is None else own_attributes_kept(holder):
                batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
                return trainer.strategy.batch_to_device(batch, dataloader_idx=0)

        return prepare

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Adds a micro-batch's part of the step's loss, which Lightning divided by their number."""
        if self.flerm is None:
            return
        self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Logs the loss of the step at hand."""
        if self.flerm is not None and self._loss is not None:
            self.flerm.log(loss=self._loss)
            self._loss = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After a measurement, sends its FSLRs and rates to the loggers.

        `self.log` is not used, because it holds a step's values back until `log_every_n_steps`.
        """
        if metrics := self._new_metrics():
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the recording."""
        self._end("completed")

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Ends the recording of a run that failed or was interrupted."""
        self._end("interrupted" if isinstance(exception, KeyboardInterrupt) else "failed")

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """This run's part of a checkpoint. Lightning asks every rank."""
        return {} if self.flerm is None else {"checkpoint": collect_state(self.flerm)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the checkpoint of a fit until training starts.

        Lightning hands it over for `test`, `validate` and `predict` too.
        """
        self._checkpoint = state_dict.get("checkpoint") if self._fitting else None


def _step_examples(trainer: Trainer, pl_module: LightningModule) -> int | None:
    """The examples of a step; None where the module steps by itself or the number changes."""
    changing = any(
        isinstance(each, GradientAccumulationScheduler) and len(set(each.scheduling.values())) > 1
        for each in trainer.callbacks
    )
    accumulation = trainer.accumulate_grad_batches
    short = trainer.num_training_batches < accumulation
    if changing or short or not pl_module.automatic_optimization:
        return None
    replicas = (trainer.distributed_sampler_kwargs or {}).get("num_replicas", 1)
    return step_examples(trainer.train_dataloader, accumulation, replicas)
