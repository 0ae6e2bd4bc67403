"""A module that Lightning trains, and one short training of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from flerm_client import FLeRM


class Classifier(LightningModule):
    """Calls its network itself in `training_step`, as many do."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3))
        self.seen: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, at: int) -> Tensor:
        loss = cross_entropy(self.net(batch[0]), batch[1])
        self.seen.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), 1e-2)
        return [optimizer], [
            {
                "scheduler": torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 6),
                "interval": "step",
            }
        ]


def data(size: int = 64) -> TensorDataset:
    """Examples and their classes."""
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(
        torch.randn(size, 6, generator=generator), torch.randint(0, 3, (size,), generator=generator)
    )


def probe() -> list[Tensor]:
    """Batches for measurements."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(8, 6, generator=generator) for _ in range(4)]


def fit(
    folder: Path,
    *callbacks: Any,
    steps: int = 6,
    module: Any = None,
    shuffle: bool = True,
    size: int = 64,
    resume: Any = None,
    data_of: LightningDataModule | None = None,
    **more: Any,
) -> Classifier:
    """Trains a module for some steps, always on the same data in the same order, and returns it."""
    seed_everything(5, verbose=False)
    module = module or Classifier()
    settings = {
        "logger": False,
        "enable_checkpointing": bool(callbacks[1:]),
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        devices=1,
        default_root_dir=folder,
        callbacks=list(callbacks),
        **settings | more,
    )
    loader = data_of or DataLoader(data(size), batch_size=8, shuffle=shuffle)
    trainer.fit(module, loader, ckpt_path=resume)
    return module


def targets() -> dict[str, float]:
    """What the first measurement of the module reads, halved."""
    model = Classifier(dropout=0.0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with FLeRM.record(model, optimizer, probe=probe(), family="net") as flerm:
        inputs, labels = data()[:8]
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return {name: value / 2 for name, value in flerm.fslr.items()}
