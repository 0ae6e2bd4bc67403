"""Text as one sequence of tokens, cut into chunks. A training run sees each chunk at most once.

The built-in text is the source code of the running Python's standard library, because every machine
has it. Its tokens are bytes, or those of a byte-pair encoding that is trained on this text.
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
"""The number of different tokens: of bytes, and of the byte-pair encoding."""
HELD_OUT = 1 / 16
"""The fraction of the chunks that probes have and training has not."""

# Distributions leave some of these folders out or add files to them. Tests are left out because
# they repeat each other.
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
    """A text in chunks of equal length. Each token is in one chunk, but for the text's last tokens.

    inputs: uint8 or int32 [chunks, length].
    labels: of the same type and shape; each label is the token after the input at its position.
    training: int64, indices of the chunks to train on.
    held_out: int64, indices of the chunks for probes.
    description: what the text is, as recordings name their data.
    """

    inputs: Tensor
    labels: Tensor
    training: Tensor
    held_out: Tensor
    description: str


@dataclass(frozen=True, slots=True)
class Text:
    """A text for language models, which is read when it is first needed.

    name: the text's part in a workload's name.
    vocabulary: the number of different tokens.
    read: a function that takes the length of a chunk and returns the text in chunks of this length.
    """

    name: str
    vocabulary: int
    read: Callable[[int], Corpus]


Part = Literal["all", "code", "prose"]
"""Which files of the library: all; those outside of `pydoc_data`; those in `pydoc_data`, which are
the language's reference manual in English."""


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

    part: which files. A model may so be trained on the code first and on the prose afterwards.
    """
    text = np.frombuffer(_library_text(part), dtype=np.uint8)
    what = {"all": "the", "code": "the code of the", "prose": "the prose of the"}[part]
    return chunked(text, length, f"bytes of {what} {_library_description(_library_text(part))}")


def _library_description(text: bytes) -> str:
    digest = hashlib.sha256(text).hexdigest()[:12]
    version = platform.python_version()
    return f"standard library of Python {version}, {len(text)} bytes, sha256 {digest}"


def chunked(tokens: NDArray[Any], length: int, description: str) -> Corpus:
    """`tokens` [n] in chunks of `length`. The chunks that are held out are always the same."""
    chunks = (len(tokens) - 1) // length
    inputs = torch.from_numpy(tokens[: chunks * length].reshape(chunks, length).copy())
    labels = torch.from_numpy(tokens[1 : chunks * length + 1].reshape(chunks, length).copy())
    order = torch.randperm(chunks, generator=generator(0, "corpus split"))
    training = chunks - int(chunks * HELD_OUT)
    return Corpus(inputs, labels, order[:training], order[training:], description)


@lru_cache(maxsize=2)
def byte_pair_corpus(length: int) -> Corpus:
    """The standard library in chunks of `length` tokens of a byte-pair encoding.

    The encoding has `BYTE_PAIR_VOCABULARY` tokens. It is trained on the library once per machine.
    Raises `InvalidInput` where the package tokenizers is not installed.
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
    """(inputs, labels) for each step, both int64 [examples of this rank, length of a chunk].

    text: the chunks. Each training chunk comes once, but for the last that do not fill a batch.
    batch: examples of one step, of all ranks together.
    shard: the positions of this rank's examples within the batch.
    seed: decides the order of the chunks.
    """
    order = text.training[
        torch.randperm(len(text.training), generator=generator(seed, "corpus order"))
    ]
    steps = order[: len(order) // batch * batch].split(batch)
    return ((text.inputs[step[shard]].long(), text.labels[step[shard]].long()) for step in steps)


def probe_batches(
    text: Corpus, batch: int, *, seed: int, rank: int, world: int
) -> Iterator[Tensor]:
    """Endless batches of held-out tokens, int64 [batch, length of a chunk].

    Each rank has a share of the held-out chunks, and shuffles its share anew at each pass. Raises
    `InvalidInput` where a rank's share does not fill a batch.

    text: the chunks.
    batch: examples of one batch of this rank.
    seed: decides the order of the chunks.
    rank, world: this rank, and the number of ranks.
    """
    mine, draw = text.held_out[rank::world], generator(seed, f"corpus probe {rank}")
    if len(mine) < batch:
        raise InvalidInput(
            f"{text.description}: {len(text.held_out)} chunks are held out for the probes of "
            f"{world} ranks, but each needs {batch}"
        )

    def walk() -> Iterator[Tensor]:
        while True:
            shuffled = mine[torch.randperm(len(mine), generator=draw)]
            for start in range(0, len(mine) - batch + 1, batch):
                yield text.inputs[shuffled[start : start + batch]].long()

    return walk()


BYTES = Text("bytes", BYTE_VOCABULARY, byte_corpus)
CODE = Text("code", BYTE_VOCABULARY, partial(byte_corpus, part="code"))
PROSE = Text("prose", BYTE_VOCABULARY, partial(byte_corpus, part="prose"))
BYTE_PAIRS = Text("bpe", BYTE_PAIR_VOCABULARY, byte_pair_corpus)
