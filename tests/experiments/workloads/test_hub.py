"""The paper's data sets and checkpoints are loaded from copies in the Hub's own formats, and one
sentence says where they cannot be loaded."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from flerm_core.errors import InvalidInput, Unreachable
from flerm_experiments.workloads import WORKLOADS, Scale, hub
from flerm_experiments.workloads.train_loop import Job, train

pytest.importorskip("datasets")
pytest.importorskip("peft")
WORDS = [
    "der",
    "Satz",
    "ist",
    "wahr",
    "il",
    "est",
    "interdit",
    "de",
    "copier",
    "a",
    "norm",
    "is",
    "one",
    "number",
    ",",
    ".",
]


def documents(count: int, words: int) -> list[str]:
    draw = np.random.default_rng(0)
    return [" ".join(draw.choice(WORDS, words)) for _ in range(count)]


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small data sets and models in the Hub's formats."""
    root = tmp_path_factory.mktemp("copies")
    for name in ("wikitext", "law", "math", "cifar10", "gpt2", "llama"):
        (root / name).mkdir()
    lines = [line for each in documents(400, 60) for line in ("", each)]
    write_texts(root, lines)
    write_images(root / "cifar10")
    write_models(root, lines)
    return root


def write_texts(root: Path, lines: list[str]) -> None:
    """WikiText as Parquet with empty lines, the law as CSV, MathPile as JSON lines."""
    import pandas as pd

    pq.write_table(pa.table({"text": lines}), root / "wikitext" / "train-00000-of-00001.parquet")
    law = {
        "texte_contexte": documents(600, 5),
        "article_contenu_markdown": documents(600, 300),
        "other": 1,
    }
    pd.DataFrame(law).to_csv(root / "law" / "cold.csv", index=False)
    pd.DataFrame({"text": documents(600, 300)}).to_json(
        root / "math" / "chunk.jsonl", orient="records", lines=True
    )


def write_images(folder: Path) -> None:
    """CIFAR-10 as Parquet of PNG files; the first image is white."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as Picture
    from PIL import Image

    def png(image: np.ndarray) -> bytes:
        content = io.BytesIO()
        Image.fromarray(image).save(content, "png")
        return content.getvalue()

    pixels = np.random.default_rng(1).integers(0, 256, (150, 32, 32, 3), dtype=np.uint8)
    pixels[0] = 255
    features = Features({"img": Picture(), "label": ClassLabel(num_classes=10)})
    rows = {
        "img": [{"bytes": png(image), "path": None} for image in pixels],
        "label": [index % 10 for index in range(150)],
    }
    Dataset.from_dict(rows, features=features).to_parquet(
        str(folder / "train-00000-of-00001.parquet")
    )


def write_models(root: Path, lines: list[str]) -> None:
    """A GPT-2 and a Llama of one layer, each with a tokenizer that is trained on `lines`."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    encoding = ByteLevelBPETokenizer()
    encoding.train_from_iterator(
        lines, vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=encoding._tokenizer, eos_token="<|endoftext|>"
    )
    sizes = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0}
    gpt2 = GPT2LMHeadModel(GPT2Config(**sizes, n_positions=512, n_embd=8, n_layer=1, n_head=2))
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1}
    llama = LlamaForCausalLM(
        LlamaConfig(
            **sizes, **heads, hidden_size=8, intermediate_size=16, max_position_embeddings=512
        )
    )
    for name, model in (("gpt2", gpt2), ("llama", llama)):
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)


@pytest.fixture(autouse=True)
def hub_is_the_copies(copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLERM_DATA", str(copies))
    for cached in (hub.hub_corpus, hub.tokenizer, hub.load_cifar10):
        cached.cache_clear()


def test_a_decoder_reads_wikitext_by_gpt2s_tokenizer() -> None:
    workload = WORKLOADS["decoder-wikitext"]
    inputs, labels = next(workload.batches(seed=0))
    assert inputs.shape == labels.shape == (16, 64)
    assert torch.equal(inputs[:, 1:], labels[:, :-1])
    assert workload.build(Scale(), seed=0)(inputs).shape == (16, 64, 50_257)
    text = hub.hub_corpus("wikitext", "gpt2", 64)
    assert text.inputs.max() < 300
    told = hub.tokenizer("gpt2").decode(text.inputs[0].tolist())
    assert all(word in "".join(WORDS) for word in told.split()[1:-1])
    assert "wikitext" in workload.config(Scale())["data"]


@pytest.mark.parametrize(
    "name", ["lora-gpt2-law", "lora-gpt2-math", "lora-llama-law", "lora-llama-math"]
)
def test_adapters_train_on_a_checkpoint_and_the_papers_texts(name: str) -> None:
    workload = WORKLOADS[name]
    inputs, labels = next(workload.batches(seed=0))
    assert inputs.shape == (8, 512)
    model = workload.build(Scale(rank=2), seed=0)
    assert {p.shape[0] for key, p in model.named_parameters() if "lora_A" in key} == {4}
    assert not any(isinstance(each, torch.nn.Dropout) and each.p for each in model.modules())
    workload.loss(workload.output(model, inputs), labels).backward()
    moved = {key for key, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {key for key, p in model.named_parameters() if "lora_B" in key}
    assert workload.config(Scale())["checkpoint"] == hub.CHECKPOINTS[name.split("-")[1]]


def test_the_residual_mlp_trains_on_cifar10() -> None:
    workload = WORKLOADS["resmlp-cifar10"]
    images, _ = next(workload.batches(seed=0))
    assert images.shape == (64, 3072)
    assert -1 <= images.min() < images.max() == 1
    assert next(workload.probe(seed=0)).shape[1] == 3072
    data = hub.load_cifar10()
    assert (len(data.images), len(data.held_out_images)) == (144, 6)
    white = torch.cat([data.images, data.held_out_images]) == 1
    assert torch.cat([data.labels, data.held_out_labels])[white.all(1)].tolist() == [0], (
        "an image keeps its label"
    )
    result = train(Job(workload="resmlp-cifar10", lr=3e-3, steps=20))
    assert result.losses[-1] < result.losses[0]


def test_unreachable_data_raise_one_sentence_that_names_the_folder_for_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLERM_DATA", str(tmp_path))
    import datasets
    import transformers

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(
        Unreachable,
        match=r"cifar10 could not be loaded from uoft-cs/cifar10 .*\$FLERM_DATA/cifar10",
    ):
        hub.load_cifar10()
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", offline)
    with pytest.raises(
        Unreachable,
        match=r"llama could not be loaded from meta-llama/Llama-3.2-1B .*\$FLERM_DATA/llama",
    ):
        hub.tokenizer("llama")


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "import_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
    with pytest.raises(
        InvalidInput, match=r"cifar10 needs the package datasets: pip install 'flerm\[data\]'"
    ):
        hub.load_cifar10()
