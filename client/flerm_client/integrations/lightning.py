"""FLeRM in Lightning's Trainer, as a callback.

trainer = lightning.Trainer(callbacks=[FLeRMCallback(mode="record", family="team/decoder")])
"""

from __future__ import annotations

from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from flerm_client.flerm import FLeRM
from flerm_client.integrations._checkpoint import collect_state, restore
from flerm_client.integrations._session import UnloggedMetrics, attach, check_keywords
from flerm_core._warnings import register_caller_package
from flerm_core.errors import InvalidInput

register_caller_package("lightning")


class FLeRMCallback(Callback):  # type: ignore[misc]  # Any: its types are not read
    """Records, or matches, each `trainer.fit()`. `keywords` are those of `FLeRM.record` or `FLeRM.match`; `family` is
    needed.

    What they leave open is found: the probe in the training data (the training's own loader is not touched), the outputs as
    `module(inputs)` of a batch `inputs`, `(inputs, targets)` or a mapping (`.logits` of what it returns), the loss as it
    goes into backward. FSLRs and learning rates go to the trainer's loggers. `.flerm` is the
    FLeRM of the run, None before its first. Its state goes into Lightning's checkpoints, and `fit(ckpt_path=...)` goes on
    from there.

    Raises `InvalidInput` for a mode or keyword that there is not; `fit()` raises what `FLeRM.record` and `FLeRM.match` do.
    """

    def __init__(self, mode: Literal["record", "match"], *, family: str, **keywords: Any) -> None:
        self._mode = mode
        self._keywords = {"family": family} | keywords
        check_keywords(mode, self._keywords)
        self.flerm: FLeRM | None = None
        self._loaded: dict[str, Any] | None = None
        self._loss: Tensor | None = None

    @property
    def state_key(self) -> str:
        """Its place in a checkpoint: one for each family and mode."""
        return self._generate_state_key(mode=self._mode, family=self._keywords["family"])  # type: ignore[no-any-return]

    # The run

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins the FLeRM: model and optimisers are wrapped, weights and optimiser states loaded."""
        self._end("interrupted")
        keywords = dict(self._keywords)
        if "output" not in keywords and type(pl_module).forward is LightningModule.forward:
            raise InvalidInput(
                f"{type(pl_module).__name__} has no forward: say what its outputs are, for instance "
                "output=lambda module, batch: module.net(batch[0])"
            )
        loader = trainer.train_dataloader
        optimizers = trainer.optimizers if len(trainer.optimizers) > 1 else trainer.optimizers[0]
        self.flerm = attach(self._mode, trainer.strategy.model, optimizers, keywords, loader=loader)
        if self._loaded is not None:
            restore(self.flerm, self._loaded["checkpoint"])
            self._loaded = None
        self._news = UnloggedMetrics(self.flerm)
        self._loss = None

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """A micro-batch's part of the step's loss (Lightning has divided it by their number)."""
        self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """The loss of the step at hand."""
        if self.flerm is not None and self._loss is not None:
            self.flerm.log(loss=self._loss)
            self._loss = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After a measurement: its FSLRs and rates to the loggers. Directly, as `self.log` would keep those of a step that
        `log_every_n_steps` passes over."""
        values = {} if self.flerm is None else self._news.pop()
        if values:
            for logger in trainer.loggers:
                logger.log_metrics(values, step=trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the recording."""
        self._end("completed")

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Ends the recording of a run that failed, or was interrupted."""
        self._end("interrupted" if isinstance(exception, KeyboardInterrupt) else "failed")

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of this run. Lightning asks every rank."""
        return {} if self.flerm is None else {"checkpoint": collect_state(self.flerm)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until training starts."""
        self._loaded = state_dict or None

    def _end(self, status: str) -> None:
        if self.flerm is not None:
            self.flerm.close(status=status)
