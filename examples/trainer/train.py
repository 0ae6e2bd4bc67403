"""GPT-2's architecture, trained by Hugging Face's Trainer on the text of the standard library.

    python train.py --lr 0.003 --width 64

The lines that FLeRM needs are marked. Without FLERM_MODE in the environment they do nothing.
"""

import argparse
import sysconfig
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

from flerm_client.integrations.transformers import FLeRMCallback  # FLeRM

CONTEXT = 64


def rows() -> list[dict[str, torch.Tensor]]:
    """Pieces of the text of some modules of the standard library, as bytes."""
    folder = Path(sysconfig.get_path("stdlib"))
    content = b"".join(path.read_bytes() for path in sorted(folder.glob("[a-d]*.py")))
    tokens = torch.frombuffer(bytearray(content), dtype=torch.uint8).long()
    pieces = tokens[: len(tokens) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    return [{"input_ids": piece, "labels": piece} for piece in pieces]


def main() -> None:
    """Trains one model."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="out")
    given = parser.parse_args()
    set_seed(given.seed)
    sizes = {"n_embd": given.width, "n_layer": 2, "n_head": max(1, given.width // 16)}
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=256, n_positions=CONTEXT, bos_token_id=0, eos_token_id=0, **sizes)
    )
    arguments = TrainingArguments(
        given.out,
        learning_rate=given.lr,
        lr_scheduler_type="constant",
        max_steps=given.steps,
        per_device_train_batch_size=16,
        seed=given.seed,
        save_strategy="no",
        logging_steps=50,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=rows())
    FLeRMCallback().add_to(trainer)  # FLeRM
    trainer.train()


if __name__ == "__main__":
    main()
