"""Text as one run of tokens, cut into chunks that are seen once.

Here the source files of the running Python's standard library, which every machine has, as bytes and as the tokens of a
byte-pair encoding trained on them.
"""

from __future__ import annotations

import hashlib
import platform
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flerm_core.errors import InvalidInput
from flerm_experiments.workloads.disk_cache import cached
from flerm_experiments.workloads.init import generator

VOCABULARY, ENCODING = 256, 1024
"""Of bytes, of the byte-pair encoding."""
HELD_OUT = 1 / 16
"""The part of the chunks kept for probes."""

# Distributions leave these out or add to them, and tests repeat each other; `_sysconfigdata*` holds the build machine's paths.
_SKIPPED = frozenset(
    {
        "site-packages",
        "dist-packages",
        "test",
        "tests",
        "idlelib",
        "lib2to3",
        "ensurepip",
        "__pycache__",
    }
)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Chunks of `length` tokens. Every token is an input once; labels are the inputs one token on."""

    inputs: Tensor
    """uint8 or int32 [chunks, length]"""
    labels: Tensor
    """as `inputs`"""
    training: Tensor
    """int64: indices of the chunks to train on"""
    held_out: Tensor
    """int64: indices of the chunks kept for probes"""
    description: str


@dataclass(frozen=True, slots=True)
class Text:
    """What language models read: a name, what it is, how many kinds of tokens it has, and its chunks of a length."""

    name: str
    description: str
    vocabulary: int
    read: Callable[[int], Corpus]


Part = Literal["all", "code", "prose"]
"""The library; the library without `pydoc_data`; `pydoc_data` alone, the language's reference manual in English."""


@lru_cache(maxsize=3)
def _text(part: Part) -> bytes:
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(
        path
        for path in root.rglob("*.py")
        if not _SKIPPED.intersection(path.relative_to(root).parts)
    )
    files = [path for path in files if not path.name.startswith("_sysconfigdata")]
    if part != "all":
        files = [path for path in files if (path.parent.name == "pydoc_data") == (part == "prose")]
    return b"\0".join(path.read_bytes() for path in files)


@lru_cache(maxsize=4)
def corpus(length: int, part: Part = "all") -> Corpus:
    """The standard library's files in sorted order, parted by a zero byte, in chunks of `length` bytes.

    `part`: the whole, or its code and its prose apart, for a model that learns one, then the other.
    """
    text = np.frombuffer(_text(part), dtype=np.uint8)
    what = {"all": "the", "code": "the code of the", "prose": "the prose of the"}[part]
    return cut(text, length, f"bytes of {what} {_library(_text(part))}")


def _library(text: bytes) -> str:
    digest = hashlib.sha256(text).hexdigest()[:12]
    return f"standard library of Python {platform.python_version()}, {len(text)} bytes, sha256 {digest}"


def cut(tokens: NDArray[Any], length: int, description: str) -> Corpus:
    """`tokens` [n] in chunks of `length`. Which are held out is fixed by a shuffle of its own, the same for every run."""
    chunks = (len(tokens) - 1) // length
    inputs = torch.from_numpy(tokens[: chunks * length].reshape(chunks, length).copy())
    labels = torch.from_numpy(tokens[1 : chunks * length + 1].reshape(chunks, length).copy())
    order = torch.randperm(chunks, generator=generator(0, "corpus split"))
    training = chunks - int(chunks * HELD_OUT)
    return Corpus(inputs, labels, order[:training], order[training:], description)


@lru_cache(maxsize=2)
def encoded(length: int) -> Corpus:
    """The standard library in chunks of `length` tokens of a byte-pair encoding of `ENCODING` tokens, trained on it once per
    machine. Raises `InvalidInput` without the package tokenizers."""
    text = _text("all")
    try:
        import tokenizers
    except ImportError as error:
        raise InvalidInput(
            "the byte-pair encoding needs the package tokenizers: pip install 'flerm[data]'"
        ) from error
    tokens = cached(
        "encoding", (ENCODING, _library(text), tokenizers.__version__), lambda: _encode(text)
    )
    return cut(tokens.numpy(), length, f"{ENCODING} byte pairs of the {_library(text)}")


def _encode(text: bytes) -> Tensor:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    files = [each.decode("utf-8", "replace") for each in text.split(b"\0")]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=ENCODING, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(files, trainer)
    return torch.tensor(
        [token for each in tokenizer.encode_batch(files) for token in each.ids], dtype=torch.int32
    )


def training_batches(
    text: Corpus, batch: int, shard: slice, *, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens int64 [batch of this rank, length] and the tokens one on, in an order drawn from `seed`; ends when every training
    chunk was seen once, but for what does not fill a batch."""
    order = text.training[
        torch.randperm(len(text.training), generator=generator(seed, "corpus order"))
    ]
    steps = order[: len(order) // batch * batch].split(batch)
    return ((text.inputs[step[shard]].long(), text.labels[step[shard]].long()) for step in steps)


def probe_batches(
    text: Corpus, batch: int, *, seed: int, rank: int, world: int
) -> Iterator[Tensor]:
    """Endless batches of held-out tokens, int64 [batch, length], which the ranks share out and shuffle anew at each pass.

    Raises `InvalidInput` where a rank's share does not fill one.
    """
    mine, draw = text.held_out[rank::world], generator(seed, f"corpus probe {rank}")
    if len(mine) < batch:
        raise InvalidInput(
            f"{text.description}: {len(text.held_out)} chunks are held out for the probes of {world} ranks, "
            f"but each needs {batch}"
        )

    def walk() -> Iterator[Tensor]:
        while True:
            shuffled = mine[torch.randperm(len(mine), generator=draw)]
            for start in range(0, len(mine) - batch + 1, batch):
                yield text.inputs[shuffled[start : start + batch]].long()

    return walk()


BYTES = Text("bytes", "the bytes of Python's standard library", VOCABULARY, corpus)
CODE = Text("code", "the bytes of its code", VOCABULARY, partial(corpus, part="code"))
PROSE = Text("prose", "the bytes of its prose", VOCABULARY, partial(corpus, part="prose"))
PAIRS = Text("bpe", "byte pairs of Python's standard library", ENCODING, encoded)
