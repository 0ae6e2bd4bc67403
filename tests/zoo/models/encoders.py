"""Masked language models and encoder-decoders of transformers, by tiny random configurations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.architecture import EXAMPLES, VOCABULARY, Architecture, Deep, Wide, tokens
from tests.zoo.models.hugging_face import SPECIAL, hugging_face

BERT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": Wide(16), "intermediate_size": Wide(24),
    "num_hidden_layers": Deep(2), "num_attention_heads": 2, "max_position_embeddings": 32,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **SPECIAL,
}  # fmt: skip
BART: dict[str, Any] = {
    "vocab_size": VOCABULARY, "d_model": Wide(16), "encoder_layers": Deep(2),
    "decoder_layers": Deep(2), "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": Wide(24), "decoder_ffn_dim": Wide(24), "max_position_embeddings": 16,
    "dropout": 0.0, "decoder_start_token_id": 2, **SPECIAL,
}  # fmt: skip

MASKED: dict[str, dict[str, Any]] = {
    "BertForMaskedLM": BERT,
    "RobertaForMaskedLM": BERT,
    "DistilBertForMaskedLM": {
        "vocab_size": VOCABULARY, "dim": Wide(16), "n_heads": 2, "n_layers": Deep(2),
        "hidden_dim": Wide(24), "max_position_embeddings": 32, "dropout": 0.0,
        "attention_dropout": 0.0, **SPECIAL,
    },
    "ElectraForMaskedLM": BERT | {"embedding_size": 8},
    "DebertaV2ForMaskedLM": BERT | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "MPNetForMaskedLM": BERT,
    "ModernBertForMaskedLM": BERT | {
        "attention_dropout": 0.0, "embedding_dropout": 0.0, "mlp_dropout": 0.0,
    },
}  # fmt: skip

ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    "T5ForConditionalGeneration": {
        "vocab_size": VOCABULARY, "d_model": Wide(16), "d_kv": 8, "d_ff": Wide(24),
        "num_layers": Deep(2), "num_heads": 2, "dropout_rate": 0.0, "decoder_start_token_id": 2,
        **SPECIAL,
    },
    "BartForConditionalGeneration": BART,
    "MarianMTModel": BART,
    "PegasusForConditionalGeneration": BART,
}  # fmt: skip

WHISPER: dict[str, Any] = BART | {
    "num_mel_bins": 8, "max_source_positions": 8, "max_target_positions": 16,
}  # fmt: skip


def _from_tokens(model: nn.Module, batch: Tensor) -> Tensor:
    found: Tensor = model(input_ids=batch, decoder_input_ids=batch.flip(1)).logits
    return found


def _from_sound(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    found: Tensor = model(input_features=batch[0], decoder_input_ids=batch[1]).logits
    return found


def _sound_and_tokens(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(EXAMPLES, 8, 16, generator=generator), tokens(generator)


def architectures() -> list[Architecture]:
    """All that this file holds. ALBERT has one block, which is called several times."""
    return [
        *(hugging_face(kind, config) for kind, config in MASKED.items()),
        hugging_face("AlbertForMaskedLM", BERT | {"embedding_size": 8}, scales=("width",)),
        *(
            hugging_face(kind, config, output=_from_tokens)
            for kind, config in ENCODER_DECODERS.items()
        ),
        hugging_face(
            "WhisperForConditionalGeneration", WHISPER, batch=_sound_and_tokens, output=_from_sound
        ),
    ]
