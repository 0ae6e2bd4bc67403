"""The `lora-…` workloads: LoRA adapters by peft on language models of transformers (Appendix A.3).

`lora-gpt2` and `lora-llama` need no network. Their models have the shapes of GPT-2 and Llama at a
width that a processor trains in a minute. They are pretrained on the code of Python's standard
library, once per machine, and their adapters are trained on its prose. The workloads on a
checkpoint (`hub`) adapt GPT-2 and Llama-3.2-1B to Cold French Law or MathPile. Everything but the
adapters is frozen. As in the paper, the learning rate of the adapters' B is swept and that of A is
fixed. The scale is the LoRA rank; the base's is 2.
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

    make: builds the model.
    adapted: the modules that get adapters, peft's defaults as in the paper.
    """

    make: Callable[[], nn.Module]
    adapted: tuple[str, ...]


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}  # one pass over the data
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    sizes = {
        "vocab_size": BYTE_VOCABULARY,
        "n_positions": CONTEXT,
        "n_embd": WIDTH,
        "n_layer": BLOCKS,
        "n_head": HEADS,
    }
    model: nn.Module = GPT2LMHeadModel(
        GPT2Config(**sizes, **quiet, **ends, attn_implementation="eager")
    )
    return model


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    ends = {"bos_token_id": 0, "eos_token_id": 0}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": HEADS // 2}
    sizes = {
        "vocab_size": BYTE_VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 8 * WIDTH // 3,
        "num_hidden_layers": BLOCKS,
    }
    config = LlamaConfig(
        **sizes, **heads, **ends, max_position_embeddings=CONTEXT, attn_implementation="eager"
    )
    model: nn.Module = LlamaForCausalLM(config)
    return model


ARCHITECTURES = {
    "gpt2": Architecture(_gpt2, ("c_attn",)),
    "llama": Architecture(_llama, ("q_proj", "k_proj", "v_proj", "o_proj")),
}


class LoRAOnText(Workload):
    """Adapters of LoRA rank 2 at scale 1. Each token is seen once.

    A step has 16 × 64 bytes of the standard library's prose or, on a checkpoint of the Hub, 8 × 512
    tokens of `text` as in the paper.
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
        on = (
            self.checkpoint
            or f"a {architecture}-shaped model pretrained on the code of Python's standard library"
        )
        self.description = f"LoRA on {on}, continued on {text.description}"

    @property
    def steps_available(self) -> int:  # type: ignore[override]
        """Whole steps in the training part.

        This is a property, because counting reads the library's files.
        """
        return len(self.text.read(self.context).training) // self.batch

    def build(self, scale: Scale, *, seed: int) -> nn.Module:
        """The pretrained model with adapters of LoRA rank 2 · rank, A normal and B zero.

        Raises `InvalidInput` without peft, `Unreachable` where a checkpoint cannot be loaded.
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
            if "lora_A" in name:  # N(0, 1/r²) as peft draws it, but from the run's seed
                normal(parameter, name, seed, 1 / rank)
        return adapted

    def config(self, scale: Scale) -> Mapping[str, Any]:
        """Sizes, and a description of the data."""
        return {
            "workload": self.name,
            "rank": scale.rank,
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
        """1e-4 for the adapters' A; that of B is swept."""
        return RATE_OF_A if "lora_A" in name else None

    def output(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """Logits [batch, time, vocabulary]."""
        logits: Tensor = model(input_ids=inputs).logits
        return logits

    def batches(
        self, *, seed: int, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Tokens int64 [batch / world, context] and the tokens one later, in one pass."""
        return training_batches(
            self.text.read(self.context), self.batch, self.shard(rank, world), seed=seed
        )

    def probe(self, *, seed: int, rank: int = 0, world: int = 1) -> Iterator[Tensor]:
        """Tokens int64 [batch, context] of the held-out chunks."""
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
    """The weights after pretraining on the library's code, kept in this machine's cache."""
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
