"""A convolutional language model in Lightning, on the text of the standard library.

    python train.py --lr 0.003 --width 64

The lines that FLeRM needs are marked. Without FLERM_MODE in the environment they do nothing.
"""

import argparse
import sysconfig
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from flerm_client.integrations.lightning import FLeRMCallback  # FLeRM

CONTEXT = 64


class ByteModel(LightningModule):
    """Predicts the next byte by causal convolutions."""

    def __init__(self, width: int, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.embed, self.head = nn.Embedding(256, width), nn.Linear(width, 256)
        self.layers = nn.ModuleList(nn.Conv1d(width, width, 4) for _ in range(3))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Maps bytes [N, T] to logits [N, T, 256]."""
        x = self.embed(tokens).transpose(1, 2)
        for layer in self.layers:
            x = x + functional.gelu(layer(functional.pad(x, (3, 0))))
        return self.head(x.transpose(1, 2))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], at: int) -> torch.Tensor:
        """The loss of a batch (inputs, labels)."""
        inputs, labels = batch
        return functional.cross_entropy(self(inputs).flatten(0, 1), labels.flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam at the rate given."""
        return torch.optim.Adam(self.parameters(), self.lr)


def data() -> TensorDataset:
    """Pieces of the text of some modules of the standard library, and the bytes that follow."""
    folder = Path(sysconfig.get_path("stdlib"))
    content = b"".join(path.read_bytes() for path in sorted(folder.glob("[a-d]*.py")))
    tokens = torch.frombuffer(bytearray(content), dtype=torch.uint8).long()
    whole = (len(tokens) - 1) // CONTEXT * CONTEXT
    return TensorDataset(tokens[:whole].view(-1, CONTEXT), tokens[1 : whole + 1].view(-1, CONTEXT))


def main() -> None:
    """Trains one model."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    seed_everything(given.seed, verbose=False)
    trainer = Trainer(
        max_steps=given.steps,
        callbacks=[FLeRMCallback()],  # FLeRM
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(data(), batch_size=16, shuffle=True)
    trainer.fit(ByteModel(given.width, given.lr), loader)


if __name__ == "__main__":
    main()
