"""The band of each tensor, by the names that models in use have."""

import pytest

from flerm_core.errors import InvalidInput
from flerm_core.parameter_bands import band_of, bands_of


@pytest.mark.parametrize(
    ("name", "band"),
    [
        # GPT-2
        ("transformer.wte.weight", "embedding"),
        ("transformer.wpe.weight", "embedding"),
        ("transformer.h.0.attn.c_attn.weight", "query/key"),
        ("transformer.h.0.attn.c_proj.weight", "value/output"),
        ("transformer.h.0.mlp.c_fc.weight", "feed-forward"),
        ("transformer.h.0.mlp.c_proj.weight", "feed-forward"),
        ("lm_head.weight", "readout"),
        # Llama
        ("model.embed_tokens.weight", "embedding"),
        ("model.layers.1.self_attn.q_proj.weight", "query/key"),
        ("model.layers.1.self_attn.k_proj.weight", "query/key"),
        ("model.layers.1.self_attn.v_proj.weight", "value/output"),
        ("model.layers.1.self_attn.o_proj.weight", "value/output"),
        ("model.layers.1.mlp.gate_proj.weight", "feed-forward"),
        ("model.layers.1.mlp.down_proj.weight", "feed-forward"),
        # BERT
        ("bert.embeddings.word_embeddings.weight", "embedding"),
        ("bert.encoder.layer.0.attention.self.query.weight", "query/key"),
        ("bert.encoder.layer.0.attention.self.value.weight", "value/output"),
        ("bert.encoder.layer.0.attention.output.dense.weight", "value/output"),
        ("bert.encoder.layer.0.intermediate.dense.weight", "feed-forward"),
        ("bert.encoder.layer.0.output.dense.weight", "feed-forward"),
        ("cls.predictions.decoder.weight", "readout"),
        # T5
        ("encoder.block.0.layer.0.SelfAttention.q.weight", "query/key"),
        ("encoder.block.0.layer.0.SelfAttention.o.weight", "value/output"),
        ("encoder.block.0.layer.1.DenseReluDense.wo.weight", "feed-forward"),
        # timm
        ("patch_embed.proj.weight", "input"),
        ("blocks.0.attn.qkv.weight", "query/key"),
        ("blocks.0.attn.proj.weight", "value/output"),
        ("blocks.0.mlp.fc2.weight", "feed-forward"),
        ("head.weight", "readout"),
        ("vit.embeddings.patch_embeddings.projection.weight", "input"),
        # torchvision
        ("conv_proj.weight", "input"),
        ("class_token", "embedding"),
        ("encoder.pos_embedding", "embedding"),
        ("features.1.0.attn.relative_position_bias_table", "embedding"),
        ("heads.head.weight", "readout"),
        ("head_dist.weight", "readout"),
        # DistilBERT, DeBERTa
        ("distilbert.transformer.layer.0.attention.q_lin.weight", "query/key"),
        ("distilbert.transformer.layer.0.attention.v_lin.weight", "value/output"),
        ("distilbert.transformer.layer.0.attention.out_lin.weight", "value/output"),
        ("deberta.encoder.layer.0.attention.self.pos_key_proj.weight", "query/key"),
        ("vocab_projector.weight", "readout"),
        # diffusers
        ("conv_in.weight", "input"),
        ("conv_out.weight", "readout"),
        # torch.nn
        ("encoder.layers.0.self_attn.in_proj_weight", "query/key"),
        ("encoder.layers.0.self_attn.out_proj.weight", "value/output"),
        ("encoder.layers.0.linear1.weight", "feed-forward"),
        # LoRA
        ("model.layers.0.self_attn.q_proj.lora_A.weight", "LoRA A"),
        ("model.layers.0.self_attn.q_proj.lora_B.weight", "LoRA B"),
    ],
)
def test_matrices_are_known_by_the_names_of_their_models(name: str, band: str) -> None:
    assert band_of(name, (8, 8)) == band


@pytest.mark.parametrize(
    ("name", "shape", "kind", "band"),
    [
        ("transformer.h.0.ln_1.weight", (8,), "", "norm"),
        ("model.layers.0.input_layernorm.weight", (8,), "", "norm"),
        ("model.layers.0.self_attn.q_norm.weight", (8,), "", "norm"),
        ("layer1.0.bn2.bias", (8,), "", "norm"),
        ("layer1.0.downsample.1.weight", (8,), "", "norm"),
        ("scale.weight", (8,), "RMSNorm", "norm"),
        ("table.weight", (8, 4), "Embedding", "embedding"),
        ("model.shared.weight", (8, 4), "BartScaledWordEmbedding", "embedding"),
        ("bag.weight", (8, 4), "EmbeddingBag", "embedding"),
        ("vision_model.embeddings.class_embedding", (8,), "", "embedding"),
        ("blocks.0.norm1.linear.weight", (48, 8), "Linear", "other"),
        ("blocks.0.norm.weight", (8, 3, 3), "LayerNorm", "norm"),
        ("head.bias", (8,), "", "bias"),
        ("rnn.bias_ih_l0", (8,), "", "bias"),
        ("encoder.layers.0.self_attn.in_proj_bias", (8,), "", "bias"),
        ("temperature", (), "", "other"),
        ("mystery.weight", (8, 8), "", "other"),
    ],
)
def test_vectors_are_known_by_their_names_and_by_the_class_of_their_module(
    name: str, shape: tuple[int, ...], kind: str, band: str
) -> None:
    assert band_of(name, shape, kind) == band


def test_a_plain_mlp_has_an_input_hidden_layers_and_a_readout() -> None:
    names = ["0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"]
    shapes = [(16, 8), (16,), (16, 16), (16,), (3, 16), (3,)]
    assert bands_of(names, shapes) == ["input", "bias", "feed-forward", "bias", "readout", "bias"]
    assert bands_of(["fc1.weight", "fc2.weight", "fc3.weight"], [(4, 2), (4, 4), (1, 4)]) == [
        "input",
        "feed-forward",
        "readout",
    ]


def test_a_residual_mlp_and_a_convolutional_net() -> None:
    resmlp = ["first.weight", "blocks.0.weight", "blocks.1.weight", "last.weight"]
    assert bands_of(resmlp, [(4, 2), (4, 4), (4, 4), (2, 4)]) == [
        "input",
        "feed-forward",
        "feed-forward",
        "readout",
    ]
    resnet = ["conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "fc.weight"]
    shapes = [(8, 3, 3, 3), (8,), (8, 8, 3, 3), (2, 8)]
    assert bands_of(resnet, shapes) == ["input", "norm", "feed-forward", "readout"]


def test_blocks_without_ends_are_all_of_one_kind() -> None:
    assert bands_of(["blocks.0.weight", "blocks.1.weight"], [(4, 4)] * 2) == ["feed-forward"] * 2
    assert (
        bands_of(["in.weight", "blocks.0.weight", "blocks.1.weight"], [(4, 2), (4, 4), (4, 4)])[2]
        == "feed-forward"
    )


def test_a_tied_decoder_has_no_readout() -> None:
    names = ["wte.weight", "h.0.attn.c_attn.weight", "h.0.mlp.c_proj.weight"]
    assert bands_of(names, [(9, 4), (4, 12), (16, 4)]) == ["embedding", "query/key", "feed-forward"]


def test_a_depth_group_has_the_band_of_its_tensors() -> None:
    names = ["first.weight", "blocks.0.weight", "blocks.1.weight", "last.weight", "blocks.*.weight"]
    assert bands_of(names, [(4, 2), (4, 4), (4, 4), (2, 4), ()])[-1] == "feed-forward"


def test_overrides_come_before_what_names_say() -> None:
    names, shapes = ["a.weight", "b.weight", "c.weight"], [(2, 2)] * 3
    assert bands_of(names, shapes, overrides={"b.*": "norm", "*": "other"}) == [
        "other",
        "norm",
        "other",
    ]
    with pytest.raises(
        InvalidInput, match=r"'nrom' .* is not a band; allowed are input, embedding"
    ):
        bands_of(names, shapes, overrides={"b.*": "nrom"})
    with pytest.raises(InvalidInput, match=r"'d\.\*' matches none of the 3 parameters"):
        bands_of(names, shapes, overrides={"d.*": "norm"})
