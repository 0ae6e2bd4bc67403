"""Adapters of peft on a small Llama."""

from __future__ import annotations

from typing import Any

from torch import nn

from tests.zoo.architecture import Architecture, at_scale, logits, tokens
from tests.zoo.models.decoders import LLAMA

ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "LoRA": ("LoraConfig", {"r": 2, "target_modules": ["q_proj", "v_proj"]}),
    "DoRA": ("LoraConfig", {"r": 2, "target_modules": ["q_proj", "v_proj"], "use_dora": True}),
    "IA3": ("IA3Config", {
        "target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"],
    }),
    "LoHa": ("LoHaConfig", {"r": 2, "target_modules": ["q_proj", "v_proj"]}),
    "VeRA": ("VeraConfig", {"r": 2, "target_modules": ["q_proj"]}),
    "OFT": ("OFTConfig", {"oft_block_size": 4, "r": 0, "target_modules": ["q_proj"]}),
    "prompt tuning": ("PromptTuningConfig", {"num_virtual_tokens": 3}),
}  # fmt: skip


def _adapter(name: str, kind: str, settings: dict[str, Any]) -> Architecture:
    def build(width: int, depth: int) -> nn.Module:
        import peft
        from transformers import LlamaConfig, LlamaForCausalLM

        base = LlamaForCausalLM(LlamaConfig(**at_scale(LLAMA, width, depth)))
        config = getattr(peft, kind)(**settings, task_type="CAUSAL_LM")
        model: nn.Module = peft.get_peft_model(base, config)
        return model

    return Architecture(f"{name} on Llama", "peft", build, tokens, logits)


def architectures() -> list[Architecture]:
    """All that this file holds."""
    return [_adapter(name, kind, settings) for name, (kind, settings) in ADAPTERS.items()]
