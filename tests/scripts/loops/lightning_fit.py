"""Lightning: a module with two kinds of parameters, a schedule, clipping and ModelCheckpoint."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from flerm_client.integrations.lightning import FLeRMCallback
from tests.scripts.loop import HALF, STEPS, Run, Trained, weights, world


class Classifier(LightningModule):
    """A small convolutional classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(),
            nn.Linear(72, 16), nn.ReLU(), nn.Linear(16, 4),
        )  # fmt: skip
        self.losses: list[float] = []

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.net(images)
        return found

    def training_step(self, batch: list[Tensor], number: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=STEPS + 1)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def train(run: Run) -> Trained:
    """The loop, as a script's main function would be. An epoch is one step."""
    seed_everything(5, verbose=False)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(8, 1, 8, 8, generator=generator)
    labels = torch.randint(0, 4, (8,), generator=generator)
    loader = DataLoader(TensorDataset(images, labels), batch_size=8)
    probe = [torch.randn(8, 1, 8, 8, generator=generator) for _ in range(4)]
    callbacks: list[Callback] = [
        ModelCheckpoint(run.folder, filename="last", save_on_train_epoch_end=True)
    ]
    callback = None
    if run.record:
        callback = FLeRMCallback(run.mode, probe=probe, **run.keywords)
        callbacks.append(callback)
    module = Classifier()
    trainer = Trainer(
        max_epochs=run.steps, accelerator="cpu", devices=world()[1],
        strategy="ddp" if world()[1] > 1 else "auto", logger=False, gradient_clip_val=1.0,
        enable_progress_bar=False, enable_model_summary=False, callbacks=callbacks,
        log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(module, loader, ckpt_path=run.folder / "last.ckpt" if run.resume else None)
    assert trainer.global_step == (HALF if run.stop else STEPS)
    return Trained(module.losses, weights(module), callback and callback.flerm)
