"""Text as one sequence of tokens, cut into chunks that are seen once.

The built-in text is the source files of the running Python's standard library, which every machine
has: as bytes, and as tokens of a byte-pair encoding that is trained on them.
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
from flerm_experiments.workloads.disk_cache import cached_on_disk
from flerm_experiments.workloads.init import generator

BYTE_VOCABULARY, BYTE_PAIR_VOCABULARY = 256, 1024
"""How many tokens there are of bytes, and of the byte-pair encoding."""
HELD_OUT = 1 / 16
"""The part of the chunks kept for probes."""

# Distributions leave these folders out or add to them, and tests repeat each other.
_SKIPPED_FOLDERS = frozenset(
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
    """A text in chunks of equal length, in which every token is an input once.

    inputs: uint8 or int32 [chunks, length].
    labels: of the same form, the inputs one token later.
    training: int64, indices of the chunks to train on.
    held_out: int64, indices of the chunks for probes.
    """

    inputs: Tensor
    labels: Tensor
    training: Tensor
    held_out: Tensor
    description: str


@dataclass(frozen=True, slots=True)
class Text:
    """A text for language models.

    vocabulary: how many different tokens it has.
    read: length of a chunk to the text in such chunks.
    """

    name: str
    description: str
    vocabulary: int
    read: Callable[[int], Corpus]


Part = Literal["all", "code", "prose"]
"""The whole library; the library without `pydoc_data`; `pydoc_data` alone, which is the language's
reference manual in English."""


@lru_cache(maxsize=3)
def _library_text(part: Part) -> bytes:
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(
        path
        for path in root.rglob("*.py")
        if not _SKIPPED_FOLDERS.intersection(path.relative_to(root).parts)
    )
    # `_sysconfigdata*` holds paths of the machine that Python was built on.
    files = [path for path in files if not path.name.startswith("_sysconfigdata")]
    if part != "all":
        files = [path for path in files if (path.parent.name == "pydoc_data") == (part == "prose")]
    return b"\0".join(path.read_bytes() for path in files)


@lru_cache(maxsize=4)
def byte_corpus(length: int, part: Part = "all") -> Corpus:
    """The standard library's files in sorted order, in chunks of `length` bytes.

    A zero byte stands between two files.

    part: the whole, or its code or prose alone, for a model that learns one and then the other.
    """
    text = np.frombuffer(_library_text(part), dtype=np.uint8)
    what = {"all": "the", "code": "the code of the", "prose": "the prose of the"}[part]
    return chunked(text, length, f"bytes of {what} {_library_description(_library_text(part))}")


def _library_description(text: bytes) -> str:
    digest = hashlib.sha256(text).hexdigest()[:12]
    version = platform.python_version()
    return f"standard library of Python {version}, {len(text)} bytes, sha256 {digest}"


def chunked(tokens: NDArray[Any], length: int, description: str) -> Corpus:
    """`tokens` [n] in chunks of `length`. The same chunks are held out in every run."""
    chunks = (len(tokens) - 1) // length
    inputs = torch.from_numpy(tokens[: chunks * length].reshape(chunks, length).copy())
    labels = torch.from_numpy(tokens[1 : chunks * length + 1].reshape(chunks, length).copy())
    order = torch.randperm(chunks, generator=generator(0, "corpus split"))
    training = chunks - int(chunks * HELD_OUT)
    return Corpus(inputs, labels, order[:training], order[training:], description)


@lru_cache(maxsize=2)
def byte_pair_corpus(length: int) -> Corpus:
    """The standard library in chunks of `length` tokens of a byte-pair encoding.

    The encoding has `BYTE_PAIR_VOCABULARY` tokens and is trained on the library once per machine.
    Raises `InvalidInput` without the package tokenizers.
    """
    text = _library_text("all")
    try:
        import tokenizers
    except ImportError as error:
        raise InvalidInput(
            "the byte-pair encoding needs the package tokenizers: pip install 'flerm[data]'"
        ) from error
    tokens = cached_on_disk(
        "encoding",
        (BYTE_PAIR_VOCABULARY, _library_description(text), tokenizers.__version__),
        lambda: _encode_byte_pairs(text),
    )
    return chunked(
        tokens.numpy(),
        length,
        f"{BYTE_PAIR_VOCABULARY} byte pairs of the {_library_description(text)}",
    )


def _encode_byte_pairs(text: bytes) -> Tensor:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    files = [each.decode("utf-8", "replace") for each in text.split(b"\0")]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=BYTE_PAIR_VOCABULARY, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(files, trainer)
    return torch.tensor(
        [token for each in tokenizer.encode_batch(files) for token in each.ids], dtype=torch.int32
    )


def training_batches(
    text: Corpus, batch: int, shard: slice, *, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens int64 [this rank's part of batch, length] and the tokens one later.

    The order is drawn from `seed`. Every training chunk comes once, but for those left over that do
    not fill a batch.
    """
    order = text.training[
        torch.randperm(len(text.training), generator=generator(seed, "corpus order"))
    ]
    steps = order[: len(order) // batch * batch].split(batch)
    return ((text.inputs[step[shard]].long(), text.labels[step[shard]].long()) for step in steps)


def probe_batches(
    text: Corpus, batch: int, *, seed: int, rank: int, world: int
) -> Iterator[Tensor]:
    """Endless batches of held-out tokens, int64 [batch, length].

    Each rank has its own share of the held-out chunks and shuffles it anew at each pass. Raises
    `InvalidInput` where a share does not fill a batch.
    """
    mine, draw = text.held_out[rank::world], generator(seed, f"corpus probe {rank}")
    if len(mine) < batch:
        raise InvalidInput(
            f"{text.description}: {len(text.held_out)} chunks are held out for the probes of "
            f"{world} ranks, "
            f"but each needs {batch}"
        )

    def walk() -> Iterator[Tensor]:
        while True:
            shuffled = mine[torch.randperm(len(mine), generator=draw)]
            for start in range(0, len(mine) - batch + 1, batch):
                yield text.inputs[shuffled[start : start + batch]].long()

    return walk()


BYTES = Text("bytes", "the bytes of Python's standard library", BYTE_VOCABULARY, byte_corpus)
CODE = Text("code", "the bytes of its code", BYTE_VOCABULARY, partial(byte_corpus, part="code"))
PROSE = Text("prose", "the bytes of its prose", BYTE_VOCABULARY, partial(byte_corpus, part="prose"))
BYTE_PAIRS = Text(
    "bpe", "byte pairs of Python's standard library", BYTE_PAIR_VOCABULARY, byte_pair_corpus
)
