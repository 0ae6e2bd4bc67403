"""Causal language models of transformers, by tiny random configurations."""

from __future__ import annotations

from typing import Any

from tests.zoo.architecture import VOCABULARY, Architecture, Deep, Wide
from tests.zoo.models.hugging_face import SPECIAL, hugging_face

# The names that most configuration classes use.
LLAMA: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": Wide(16), "intermediate_size": Wide(24),
    "num_hidden_layers": Deep(2), "num_attention_heads": 2, "num_key_value_heads": 1,
    "max_position_embeddings": 16, "head_dim": Wide(8),
    "attention_dropout": 0.0, "hidden_dropout": 0.0, **SPECIAL,
}  # fmt: skip
GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY, "n_embd": Wide(16), "n_inner": Wide(24), "n_layer": Deep(2),
    "n_head": 2, "n_positions": 16, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    **SPECIAL,
}  # fmt: skip
ONE_HEAD_A_QUERY: dict[str, Any] = {
    key: value for key, value in LLAMA.items() if key not in ("num_key_value_heads", "head_dim")
}
MIXTURE: dict[str, Any] = LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2}

DECODERS: dict[str, dict[str, Any]] = {
    "GPT2LMHeadModel": GPT2,
    "GPTNeoForCausalLM": {
        "vocab_size": VOCABULARY, "hidden_size": Wide(16), "intermediate_size": Wide(24),
        "num_layers": Deep(2), "num_heads": 2, "max_position_embeddings": 16, "window_size": 4,
        "attention_types": [[["global", "local"], Deep(1)]], "attention_dropout": 0.0,
        "resid_dropout": 0.0, "embed_dropout": 0.0, **SPECIAL,
    },
    "GPTNeoXForCausalLM": ONE_HEAD_A_QUERY,
    "GPTJForCausalLM": GPT2 | {"rotary_dim": 4},
    "OPTForCausalLM": ONE_HEAD_A_QUERY | {
        "ffn_dim": Wide(24), "word_embed_proj_dim": Wide(16), "dropout": 0.0,
    },
    "BloomForCausalLM": {
        "vocab_size": VOCABULARY, "hidden_size": Wide(16), "n_layer": Deep(2), "n_head": 2,
        "attention_dropout": 0.0, "hidden_dropout": 0.0, **SPECIAL,
    },
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": LLAMA | {"sliding_window": 4},
    "MixtralForCausalLM": MIXTURE,
    "Qwen2ForCausalLM": LLAMA | {"tie_word_embeddings": True},
    "Qwen2MoeForCausalLM": LLAMA | {
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": Wide(24),
        "shared_expert_intermediate_size": Wide(24),
    },
    "Qwen3ForCausalLM": LLAMA,
    "GemmaForCausalLM": LLAMA,
    "Gemma2ForCausalLM": LLAMA | {"sliding_window": 4, "query_pre_attn_scalar": 8},
    "Gemma3ForCausalLM": LLAMA | {"sliding_window": 4, "query_pre_attn_scalar": 8},
    "PhiForCausalLM": LLAMA | {"resid_pdrop": 0.0, "embd_pdrop": 0.0},
    "Phi3ForCausalLM": LLAMA | {"resid_pdrop": 0.0, "embd_pdrop": 0.0},
    "FalconForCausalLM": ONE_HEAD_A_QUERY | {"num_kv_heads": 1},
    "MptForCausalLM": {
        "vocab_size": VOCABULARY, "d_model": Wide(16), "n_heads": 2, "n_layers": Deep(2),
        "expansion_ratio": 2, "max_seq_len": 16, **SPECIAL,
    },
    "StableLmForCausalLM": LLAMA,
    "OlmoForCausalLM": LLAMA,
    "Olmo2ForCausalLM": LLAMA,
    "CohereForCausalLM": LLAMA,
    "Starcoder2ForCausalLM": LLAMA | {"residual_dropout": 0.0, "embedding_dropout": 0.0},
    "GraniteForCausalLM": LLAMA,
    "SmolLM3ForCausalLM": LLAMA,
    "GlmForCausalLM": LLAMA,
    "GptOssForCausalLM": MIXTURE | {
        "sliding_window": 4, "layer_types": Deep(["sliding_attention", "full_attention"]),
    },
    "DeepseekV3ForCausalLM": ONE_HEAD_A_QUERY | {
        "moe_intermediate_size": Wide(24), "n_routed_experts": 4, "num_experts_per_tok": 2,
        "n_group": 2, "topk_group": 1, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4, "v_head_dim": 8, "first_k_dense_replace": 1,
        "num_key_value_heads": 2,
    },
    "MambaForCausalLM": ONE_HEAD_A_QUERY | {"state_size": 4},
    "Mamba2ForCausalLM": ONE_HEAD_A_QUERY | {
        "state_size": 4, "num_heads": Wide(4), "head_dim": 8, "n_groups": 1, "chunk_size": 4,
    },
    "RecurrentGemmaForCausalLM": LLAMA | {
        "lru_width": Wide(16), "attention_window_size": 4, "conv1d_width": 2, "use_cache": False,
        "block_types": ("recurrent", "attention"),
    },
    "RwkvForCausalLM": ONE_HEAD_A_QUERY | {
        "attention_hidden_size": Wide(16), "context_length": 16,
    },
}  # fmt: skip


def architectures() -> list[Architecture]:
    """All that this file holds."""
    return [hugging_face(kind, config) for kind, config in DECODERS.items()]
