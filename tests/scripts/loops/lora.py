"""LoRA by hand: a peft model, only its adapters in the optimiser, only they in the checkpoint."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.scripts.loop import Run, Trained, own, own_file, replicated, text, weights

VOCABULARY, LENGTH = 32, 12


def adapted() -> nn.Module:
    """A frozen GPT-2 with adapters on its attention."""
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=16, n_layer=2, n_head=2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    chosen = LoraConfig(
        r=2, lora_alpha=4, lora_dropout=0.1, target_modules=["c_attn"], fan_in_fan_out=True,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    model: nn.Module = get_peft_model(GPT2LMHeadModel(config), chosen)
    return model


def outputs(model: nn.Module, ids: Tensor) -> Tensor:
    """The logits."""
    logits: Tensor = model(input_ids=ids).logits
    return logits


def train(run: Run) -> Trained:
    """The loop, as a script's main function would be."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    torch.manual_seed(0)
    model = adapted().train()
    called = replicated(model)
    torch.manual_seed(own(0))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    flerm = None
    if run.record:
        flerm = run.attach(
            called, optimizer, probe=[text(8, LENGTH, VOCABULARY, own(seed)) for seed in range(4)],
            output=outputs, **run.keywords,
        )  # fmt: skip
    begin = 0
    if run.resume:
        saved = torch.load(own_file(run.folder, "adapter.pt"), weights_only=True)
        set_peft_model_state_dict(model, saved["adapter"])
        optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["random"])
        if flerm is not None:
            flerm.load_state_dict(saved["flerm"])
        begin = saved["step"]
    losses = []
    for step in range(begin, run.steps):
        ids = text(8, LENGTH, VOCABULARY, own(10 + step))
        loss = called(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    if run.stop:
        torch.save(
            {
                "adapter": get_peft_model_state_dict(model), "optimizer": optimizer.state_dict(),
                "random": torch.get_rng_state(), "step": run.steps,
                "flerm": flerm.state_dict() if flerm is not None else None,
            },
            own_file(run.folder, "adapter.pt"),
        )  # fmt: skip
    if flerm is not None:
        flerm.close("interrupted" if run.stop else "completed")
    return Trained(losses, weights(model), flerm)
