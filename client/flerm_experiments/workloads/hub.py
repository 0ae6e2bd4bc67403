"""The paper's data sets and pretrained models, from the Hugging Face Hub or from local copies.

The environment variable `FLERM_DATA` names a folder of copies, for machines without a network. The
copy of a data set or model is a folder in it that is called by the key in `DATASETS` or
`CHECKPOINTS`, and is read in place of the Hub. The copy of a data set holds Parquet, JSON-lines or
CSV files with the columns of `HubDataset.columns`. The copy of a model is a folder that
`save_pretrained` wrote, with the files of its tokenizer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from flerm_core.errors import InvalidInput, Unreachable
from flerm_experiments.workloads.corpus import Corpus, Text, chunked
from flerm_experiments.workloads.images import ImageData, Images
from flerm_experiments.workloads.init import generator


@dataclass(frozen=True, slots=True, kw_only=True)
class HubDataset:
    """A data set of the Hub.

    address: its name on the Hub.
    columns: the columns that are read. Those of a text are joined by a space.
    options: arguments of `load_dataset` that choose a part of the data set.
    documents: the number of rows that are read, from the first row on; None for all rows.
    """

    address: str
    columns: tuple[str, ...]
    options: Mapping[str, Any]
    documents: int | None = None


DATASETS = {
    # A tenth of WikiText-103, as in Appendix A.2.
    "wikitext": HubDataset(
        address="Salesforce/wikitext",
        columns=("text",),
        options={"name": "wikitext-103-raw-v1"},
        documents=180_000,
    ),
    # For "law" and "math", the columns and files that the paper's own code reads (Appendix A.3).
    "law": HubDataset(
        address="harvard-lil/cold-french-law",
        columns=("texte_contexte", "article_contenu_markdown"),
        options={},
        documents=20_000,
    ),
    "math": HubDataset(
        address="GAIR/MathPile",
        columns=("text",),
        options={"data_files": "train/arXiv/math_arXiv_v0.2_chunk_1.jsonl.gz"},
        documents=20_000,
    ),
    "cifar10": HubDataset(address="uoft-cs/cifar10", columns=("img", "label"), options={}),
}
CHECKPOINTS = {"gpt2": "openai-community/gpt2", "llama": "meta-llama/Llama-3.2-1B"}
MAX_TOKENS = 4_000_000
"""The number of tokens after which no further document is read. The paper trains adapters on as
many tokens."""


def _local_copy(name: str) -> str | None:
    folder = os.environ.get("FLERM_DATA")
    path = Path(folder) / name if folder else None
    return str(path) if path is not None and path.exists() else None


def _rows(name: str) -> Iterator[Mapping[str, Any]]:
    """The first rows of `DATASETS[name]`, in their order.

    Raises as `hub_corpus` does.
    """
    source, copy = DATASETS[name], _local_copy(name)
    datasets = _import_package("datasets", name)
    try:
        options = {} if copy else dict(source.options)
        rows = datasets.load_dataset(
            copy or source.address, split="train", streaming=True, **options
        )
        yield from islice(rows, source.documents)
    except (OSError, ValueError) as error:
        raise Unreachable(_unreachable_message(name, source.address, error)) from error


def _import_package(package: str, name: str) -> Any:
    try:
        return import_module(package)
    except ImportError as error:
        raise InvalidInput(
            f"{name} needs the package {package}: pip install 'flerm[data]'"
        ) from error


def _unreachable_message(name: str, address: str, error: Exception) -> str:
    said = " ".join(str(error).split())[:200]
    return (
        f"{name} could not be loaded from {address} on the Hugging Face Hub ({said}); "
        f"a copy may lie in $FLERM_DATA/{name}"
    )


@lru_cache(maxsize=2)
def hub_corpus(name: str, checkpoint: str, length: int) -> Corpus:
    """The text `DATASETS[name]` in chunks of `length` tokens.

    An end-of-text token stands after each document. Raises `InvalidInput` where the package
    datasets or transformers is not installed, and `Unreachable` where neither the Hub nor a copy
    can be read.

    name: a key of `DATASETS`.
    checkpoint: the key in `CHECKPOINTS` of the model whose tokenizer is used.
    length: tokens of a chunk.
    """
    encode = tokenizer(checkpoint)
    found: list[int] = []
    for row in _rows(name):
        parts = [str(row[column]) for column in DATASETS[name].columns if row.get(column)]
        if parts:
            found += [*encode(" ".join(parts))["input_ids"], encode.eos_token_id]
        if len(found) > MAX_TOKENS:
            break
    return chunked(
        np.array(found, dtype=np.int32),
        length,
        f"{name}, the first {len(found)} tokens of {checkpoint}'s tokenizer",
    )


@lru_cache(maxsize=2)
def tokenizer(checkpoint: str) -> Any:
    """The tokenizer of `CHECKPOINTS[checkpoint]`. Raises as `model` does."""
    return _pretrained("AutoTokenizer", checkpoint)


def model(checkpoint: str) -> nn.Module:
    """The causal language model `CHECKPOINTS[checkpoint]`, in float32 and without dropout.

    Raises `InvalidInput` where the package transformers is not installed, and `Unreachable` where
    neither the Hub nor a copy can be read.
    """
    found: nn.Module = _pretrained(
        "AutoModelForCausalLM", checkpoint, dtype=torch.float32, attn_implementation="eager"
    )
    for module in found.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return found


def _pretrained(kind: str, checkpoint: str, **options: Any) -> Any:
    transformers = _import_package("transformers", checkpoint)
    try:
        return getattr(transformers, kind).from_pretrained(
            _local_copy(checkpoint) or CHECKPOINTS[checkpoint], **options
        )
    except (OSError, ValueError) as error:
        raise Unreachable(
            _unreachable_message(checkpoint, CHECKPOINTS[checkpoint], error)
        ) from error


@lru_cache(maxsize=1)
def load_cifar10() -> Images:
    """CIFAR-10's training images, flattened, with pixels from -1 to 1 as in the paper's code.

    One image in 25 is held out for probes. Raises as `hub_corpus` does.
    """
    rows = [
        (np.asarray(row["img"], dtype=np.uint8).reshape(-1), int(row["label"]))
        for row in _rows("cifar10")
    ]
    order = torch.randperm(len(rows), generator=generator(0, "cifar10 split"))
    images = (
        torch.from_numpy(np.stack([image for image, _ in rows]))
        .float()
        .div_(127.5)
        .sub_(1.0)[order]
    )
    labels = torch.tensor([label for _, label in rows])[order]
    training = len(rows) - len(rows) // 25
    return Images(images[:training], labels[:training], images[training:], labels[training:])


CIFAR10 = ImageData("cifar10", "CIFAR-10", 3 * 32 * 32, load_cifar10)


def hub_text(name: str, checkpoint: str) -> Text:
    """The text `DATASETS[name]`, in the tokens of the model `CHECKPOINTS[checkpoint]`.

    Nothing is loaded before the text is first read.
    """
    vocabulary = {"gpt2": 50_257, "llama": 128_256}[checkpoint]
    return Text(name, vocabulary, partial(hub_corpus, name, checkpoint))
