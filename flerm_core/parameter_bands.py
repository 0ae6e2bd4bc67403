"""Bands: what kind of tensor a parameter is. Figures group parameters by band."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from flerm_core.errors import InvalidInput
from flerm_core.parameter_names import block_axes, expand, is_depth_group, split_name

BANDS = (
    "input",
    "embedding",
    "query/key",
    "value/output",
    "feed-forward",
    "norm",
    "bias",
    "readout",
    "LoRA A",
    "LoRA B",
    "other",
)

_NORM = re.compile(r"norm|^ln(_|\d|$)|^bn(_|\d|$)|^gn\d*$")
_BIAS = re.compile(r"(^|_)bias(_|$)|^b\d?$")
# Positions and learnt tokens: rows that are added to those of a batch, or stand among them.
_TOKEN = re.compile(
    r"^(cls|class|dist|distillation|mask|reg|register|query|latent)_tokens?$|^class_embedding$"
    r"|^pos_embed|^position|^relative_position_bias_table$"
)
_ATTENTION = re.compile(r"attn|attention")
_BLOCK_OUTPUT = frozenset({"c_proj", "proj", "dense", "o", "out", "output", "to_out"})
_INPUT = frozenset(
    {
        "input",
        "inp",
        "patch_embed",
        "patch_embedding",
        "patch_embeddings",
        "stem",
        "conv_proj",
        "conv_in",
        "embedder",
        "proj_in",
        "input_proj",
        "embed_in_proj",
    }
)
_EMBEDDING = re.compile(r"embed|^emb(_|$)|_emb$|^wte$|^wpe$|^pos_emb")
_READOUT = frozenset(
    {
        "lm_head",
        "head",
        "heads",
        "head_dist",
        "generator_lm_head",
        "vocab_projector",
        "conv_out",
        "classifier",
        "readout",
        "unembed",
        "unembedding",
        "embed_out",
        "logits",
        "score",
        "output",
        "fc",
    }
)
_QUERY_KEY = re.compile(
    r"^(w?q|w?k|w?qk|to_q|to_k|query|key|[qk]_lin|[qk]_(a_|b_)?proj|(pos_)?(query|key)_proj|c_attn|w?qkv|w?qkv_proj|to_qkv|in_proj|in_proj_weight"
    r"|[qk]_proj_weight|query_key_value|kv_a_proj.*|kv_b_proj)$"
)
_VALUE_OUTPUT = re.compile(
    r"^(w?v|wo|to_v|to_out|value|v_lin|out_lin|v_proj|v_proj_weight|value_proj|o_proj|out_proj|output_proj)$"
)
_FEED_FORWARD = re.compile(
    r"mlp|ffn|feed_?forward|^ff\d*$|^fc\d+$|^fc_(in|out)$|^c_fc$|^(gate|up|down|gate_up)_proj$|^w[123]$|^intermediate$|^linear\d$|^lin\d*$"
    r"|^dense_(h_to_4h|4h_to_h)$|^densereludense$|^wi(_\d)?$|^experts?$"
)


def band_of(name: str, shape: Sequence[int], module_kind: str = "") -> str:
    """The band of a parameter, one of `BANDS`.

    name: its canonical name.
    shape: its shape.
    module_kind: the class name of the module that holds it; "": not known.

    Knows the names of GPT-2, Llama, BERT, T5, timm and torch.nn modules. A fused query-key-value
    projection is `query/key`; the bias of a norm is `norm`. A matrix whose name is not known is
    `other`. `bands_of` may place it better, because it knows the rest of the model.
    """
    path = [part.lower() for part in name.split(".")]
    leaf, owners = path[-1], path[:-1]
    kind = module_kind.lower()
    if any(part.startswith(("lora_a", "lora_embedding_a")) for part in path):
        return "LoRA A"
    if any(part.startswith(("lora_b", "lora_embedding_b")) for part in path):
        return "LoRA B"
    vector = len(shape) < 2 and not is_depth_group(name)
    # A matrix in a norm makes its scale of something else (diffusion transformers).
    modulation = len(shape) > 1 and kind == "linear"
    if "norm" in kind or (not modulation and any(_NORM.search(part) for part in path)):
        return "norm"
    if _TOKEN.search(leaf):
        return "embedding"
    if _BIAS.search(leaf):
        return "bias"
    if vector:
        return "norm" if leaf == "weight" and len(shape) == 1 else "other"
    return _matrix_band(path, owners, kind)


def _matrix_band(path: list[str], owners: list[str], kind: str) -> str:
    inside = any(part.isdecimal() or part == "*" for part in owners)
    if not inside and any(part in _INPUT for part in path):
        return "input"
    if not inside and any(part in _READOUT or part in ("predictions", "cls") for part in owners):
        return "readout"
    if "embedding" in kind or any(_EMBEDDING.search(part) for part in path):
        return "embedding"
    if "densereludense" in owners:
        return "feed-forward"
    attention = any(_ATTENTION.search(part) for part in owners)
    for part in reversed(path):
        if _QUERY_KEY.match(part):
            return "query/key"
        if _VALUE_OUTPUT.match(part) or (attention and part in _BLOCK_OUTPUT):
            return "value/output"
        if _FEED_FORWARD.search(part) or (inside and not attention and part in ("c_proj", "dense")):
            return "feed-forward"
    return "other"


def bands_of(
    names: Sequence[str],
    shapes: Sequence[Sequence[int]],
    kinds: Sequence[str] | None = None,
    overrides: Mapping[str, str] | None = None,
) -> list[str]:
    """The band of each of a model's parameters, in the order of `names`.

    names: canonical names, in the order of the model.
    shapes: one for each name.
    kinds: the class name of the module that holds each parameter; None: not known.
    overrides: bands by shell-style pattern of names. The first pattern that matches counts.

    In a model without an embedding, the first matrix is the input and the last one the readout,
    unless their names say otherwise. Every other matrix whose name is not known is feed-forward, as
    in an MLP, a residual MLP or a convolutional net. A depth group has the band of its tensors.

    Raises `InvalidInput` for an override whose band is not one of `BANDS`, or whose pattern matches
    nothing.
    """
    kinds = kinds if kinds is not None else [""] * len(names)
    bands = [
        band_of(name, shape, kind) for name, shape, kind in zip(names, shapes, kinds, strict=True)
    ]
    _place_ends(names, shapes, bands)
    by_name = dict(zip(names, bands, strict=True))
    for at, name in enumerate(names):
        if is_depth_group(name) and (members := expand(name, names)):
            bands[at] = by_name[members[0]]
    _override(names, bands, overrides or {})
    return bands


def _place_ends(names: Sequence[str], shapes: Sequence[Sequence[int]], bands: list[str]) -> None:
    open_bands = ("other", "feed-forward")
    matrices = [
        at for at, shape in enumerate(shapes) if len(shape) > 1 and not is_depth_group(names[at])
    ]
    if matrices and "embedding" not in bands:
        axes = block_axes(names, shapes)
        for at, band in ((matrices[0], "input"), (matrices[-1], "readout")):
            if band not in bands and bands[at] in open_bands and not _in_block(names[at], axes):
                bands[at] = band
    for at in matrices:
        if bands[at] == "other":
            bands[at] = "feed-forward"


def _in_block(name: str, axes: Sequence[str]) -> bool:
    """Whether the parameter lies in a block or in a numbered module of modules.

    Such a parameter is neither the input nor the readout.
    """
    return bool(split_name(name, axes)[1]) or any(part.isdecimal() for part in name.split(".")[:-2])


def _override(names: Sequence[str], bands: list[str], overrides: Mapping[str, str]) -> None:
    done: set[int] = set()
    for pattern, band in overrides.items():
        if band not in BANDS:
            raise InvalidInput(
                f"bands: {band!r} (for {pattern!r}) is not a band; allowed are {', '.join(BANDS)}"
            )
        hits = [at for at, name in enumerate(names) if fnmatchcase(name, pattern)]
        if not hits:
            raise InvalidInput(
                f"bands: the pattern {pattern!r} matches none of the {len(names)} parameters"
            )
        for at in hits:
            if at not in done:
                bands[at] = band
        done.update(hits)
