"""The `lora-…` workloads: LoRA adapters by peft on language models of transformers (Appendix A.3).

`lora-gpt2` and `lora-llama` need no network. Their models have the architectures of GPT-2 and Llama
at a width that a processor trains in a minute. The models are pretrained on the code of Python's
standard library, once per machine. The adapters are then trained on the library's prose. The other
workloads adapt the checkpoints GPT-2 and Llama-3.2-1B (`hub`) to Cold French Law or MathPile.
Everything but the adapters is frozen. As in the paper, the learning rate of the adapters' B is the
run's, and the learning rate of A is fixed. Models differ in LoRA rank alone; the base's is 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from flerm_core.errors import InvalidInput
from flerm_experiments.workloads import hub
from flerm_experiments.workloads.base import Scale, Workload
from flerm_experiments.workloads.corpus import (
    BYTE_VOCABULARY,
    CODE,
    PROSE,
    Text,
    probe_batches,
    training_batches,
)
from flerm_experiments.workloads.disk_cache import cached_on_disk
from flerm_experiments.workloads.init import generator, normal

BASE_RANK = 2
RATE_OF_A = 1e-4
WIDTH, BLOCKS, HEADS, CONTEXT, BATCH = 64, 2, 4, 64, 16
PRETRAINING_STEPS, PRETRAINING_RATE = 600, 3e-3


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model's architecture.

    make: builds the small model that is pretrained here.
    adapted: the names of the modules that get adapters: peft's default, as in the paper.
    """

    make: Callable[[], nn.Module]
    adapted: tuple[str, ...]


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    # One pass over the data needs no dropout.
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    special_tokens = {"bos_token_id": 0, "eos_token_id": 0}
    sizes = {
        "vocab_size": BYTE_VOCABULARY,
        "n_positions": CONTEXT,
        "n_embd": WIDTH,
        "n_layer": BLOCKS,
        "n_head": HEADS,
    }
    model: nn.Module = GPT2LMHeadModel(
        GPT2Config(**sizes, **dropout, **special_tokens, attn_implementation="eager")
    )
    return model


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    special_tokens = {"bos_token_id": 0, "eos_token_id": 0}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": HEADS // 2}
    sizes = {
        "vocab_size": BYTE_VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 8 * WIDTH // 3,
        "num_hidden_layers": BLOCKS,
    }
    config = LlamaConfig(
        **sizes,
        **heads,
        **special_tokens,
        max_position_embeddings=CONTEXT,
        attn_implementation="eager",
    )
    model: nn.Module = LlamaForCausalLM(config)
    return model


ARCHITECTURES = {
    "gpt2": Architecture(_gpt2, ("c_attn",)),
    "llama": Architecture(_llama, ("q_proj", "k_proj", "v_proj", "o_proj")),
}


class LoRAOnText(Workload):
    """Adapters of LoRA rank 2 at scale 1. A run sees each token at most once.

    A step has 16 × 64 bytes of the standard library's prose. On a checkpoint of the Hub, a step has
    8 × 512 tokens of `text`, as in the paper.
    """

    scales = frozenset({"rank", "batch"})

    def __init__(self, architecture: str, text: Text = PROSE) -> None:
        self.architecture = architecture
        self.text = text
        self.checkpoint = "" if text is PROSE else hub.CHECKPOINTS[architecture]
        self.batch, self.context = (8, 512) if self.checkpoint else (BATCH, CONTEXT)
        self.tokens_per_step = self.batch * self.context
        self.name = (
            f"lora-{architecture}-{text.name}" if self.checkpoint else f"lora-{architecture}"
        )

    @property
    def steps_available(self) -> int:  # type: ignore[override]
        """Steps of `batch` whole chunks in the text's training part.

        The number is computed when it is asked for, because the text must be read for it.
        """
        return len(self.text.read(self.context).training) // self.batch

    def build(self, scale: Scale, *, seed: int) -> nn.Module:
        """The pretrained model with adapters of LoRA rank r = 2 · rank.

        A is drawn from N(0, 1/r²), and B is zero. Raises `InvalidInput` where the package peft is
        not installed, and `Unreachable` where a checkpoint cannot be loaded.
        """
        try:
            from peft import LoraConfig, get_peft_model
        except ImportError as error:
            raise InvalidInput(
                f"{self.name} needs the package peft: pip install 'flerm[lora]'"
            ) from error
        rank = BASE_RANK * scale.rank
        with torch.random.fork_rng(devices=[]):
            model = (
                hub.model(self.architecture)
                if self.checkpoint
                else _pretrained_model(self.architecture)
            )
            adapters = LoraConfig(
                r=rank,
                init_lora_weights="gaussian",
                target_modules=list(ARCHITECTURES[self.architecture].adapted),
                fan_in_fan_out=self.architecture == "gpt2",
            )
            adapted: nn.Module = get_peft_model(model, adapters)
        for name, parameter in adapted.named_parameters():
            if "lora_A" in name:  # peft's distribution, but drawn from the run's seed
                normal(parameter, name, seed, 1 / rank)
        return adapted

    def config(self, scale: Scale) -> Mapping[str, Any]:
        """The model's sizes, and what the text is."""
        return {
            "workload": self.name,
            "lora_rank": BASE_RANK * scale.rank,
            **(
                {"checkpoint": self.checkpoint}
                if self.checkpoint
                else {"d_model": WIDTH, "blocks": BLOCKS}
            ),
            "context": self.context,
            "data": self.text.read(self.context).description,
        }

    def fixed_rate(self, name: str) -> float | None:
        """1e-4 for the adapters' A; None for their B, which train at the run's rate."""
        return RATE_OF_A if "lora_A" in name else None

    def output(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """Logits [batch, time, vocabulary]."""
        logits: Tensor = model(input_ids=inputs).logits
        return logits

    def batches(
        self, *, seed: int, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(inputs, labels) of each step, int64 [batch / world, context], in one pass."""
        return training_batches(
            self.text.read(self.context), self.batch, self.shard(rank, world), seed=seed
        )

    def probe(self, *, seed: int, rank: int = 0, world: int = 1) -> Iterator[Tensor]:
        """Held-out tokens int64 [batch, context] of this rank, in a new order at each pass."""
        self.shard(rank, world)
        return probe_batches(
            self.text.read(self.context), self.batch, seed=seed, rank=rank, world=world
        )

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy in nats per token."""
        return functional.cross_entropy(output.flatten(0, -2), labels.flatten())


def _pretrained_model(name: str) -> nn.Module:
    model = ARCHITECTURES[name].make()
    model.load_state_dict(_pretrained_weights(name))
    return model


@lru_cache(maxsize=2)
def _pretrained_weights(shape: str) -> dict[str, Tensor]:
    """The weights after pretraining on the library's code, from the disk cache if there."""
    import transformers

    about = CODE.read(CONTEXT).description
    settings = (
        shape,
        WIDTH,
        BLOCKS,
        HEADS,
        CONTEXT,
        BATCH,
        PRETRAINING_STEPS,
        PRETRAINING_RATE,
        about,
    )
    versions = (torch.__version__, transformers.__version__)
    return cached_on_disk(f"pretrained-{shape}", (settings, versions), lambda: _pretrain(shape))


def _pretrain(shape: str) -> dict[str, Tensor]:
    torch.manual_seed(int(torch.randint(2**31, (), generator=generator(0, f"pretraining {shape}"))))
    model = ARCHITECTURES[shape].make()
    optimizer = torch.optim.Adam(model.parameters(), PRETRAINING_RATE)
    steps = training_batches(CODE.read(CONTEXT), BATCH, slice(None), seed=0)
    for _, (inputs, labels) in zip(range(PRETRAINING_STEPS), steps, strict=False):
        optimizer.zero_grad()
        logits = model(input_ids=inputs).logits
        functional.cross_entropy(logits.flatten(0, -2), labels.flatten()).backward()
        optimizer.step()
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
