"""The source files of the running Python's standard library as one run of bytes: text that every machine has, seen once."""

from __future__ import annotations

import hashlib
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from flerm_client.workloads.initialise import generator

VOCABULARY = 256
HELD_OUT = 1 / 16
"""The part of the chunks kept for probes."""

# Distributions leave these out or add to them, and tests repeat each other; `_sysconfigdata*` holds the build machine's paths.
_SKIPPED = frozenset({"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "ensurepip", "__pycache__"})


@dataclass(frozen=True, slots=True)
class Corpus:
    """Chunks of `length` bytes. Every byte is an input once; labels are the inputs one byte on."""

    inputs: Tensor
    """uint8 [chunks, length]"""
    labels: Tensor
    """uint8 [chunks, length]"""
    training: Tensor
    """int64: indices of the chunks to train on"""
    held_out: Tensor
    """int64: indices of the chunks kept for probes"""
    description: str


Part = Literal["all", "code", "prose"]
"""The library; the library without `pydoc_data`; `pydoc_data` alone, the language's reference manual in English."""


@lru_cache(maxsize=3)
def _text(part: Part) -> bytes:
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(path for path in root.rglob("*.py") if not _SKIPPED.intersection(path.relative_to(root).parts))
    files = [path for path in files if not path.name.startswith("_sysconfigdata")]
    if part != "all":
        files = [path for path in files if (path.parent.name == "pydoc_data") == (part == "prose")]
    return b"\0".join(path.read_bytes() for path in files)


@lru_cache(maxsize=4)
def corpus(length: int, part: Part = "all") -> Corpus:
    """The standard library's files in sorted order, parted by a zero byte, cut into chunks of `length` bytes.

    `part`: the whole, or its code and its prose apart, for a model that learns one, then the other. Which chunks are held out
    is fixed by a shuffle of its own, the same for every run.
    """
    text = np.frombuffer(_text(part), dtype=np.uint8)
    chunks = (len(text) - 1) // length
    inputs = torch.from_numpy(text[: chunks * length].reshape(chunks, length).copy())
    labels = torch.from_numpy(text[1 : chunks * length + 1].reshape(chunks, length).copy())
    order = torch.randperm(chunks, generator=generator(0, "corpus split"))
    training = chunks - int(chunks * HELD_OUT)
    digest = hashlib.sha256(_text(part)).hexdigest()[:12]
    what = {"all": "the", "code": "the code of the", "prose": "the prose of the"}[part]
    description = f"bytes of {what} standard library of Python {platform.python_version()}, {len(text)} bytes, sha256 {digest}"
    return Corpus(inputs, labels, order[:training], order[training:], description)


def training_batches(text: Corpus, batch: int, shard: slice, *, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Bytes int64 [batch of this rank, length] and the bytes one on, in an order drawn from `seed`; ends when every training
    chunk was seen once, but for what does not fill a batch."""
    order = text.training[torch.randperm(len(text.training), generator=generator(seed, "corpus order"))]
    steps = order[: len(order) // batch * batch].split(batch)
    return ((text.inputs[step[shard]].long(), text.labels[step[shard]].long()) for step in steps)


def probe_batches(text: Corpus, batch: int, *, seed: int, rank: int, world: int) -> Iterator[Tensor]:
    """Endless batches of held-out bytes, int64 [batch, length], which the ranks share out and shuffle anew at each pass."""
    mine, draw = text.held_out[rank::world], generator(seed, f"corpus probe {rank}")
    while True:
        shuffled = mine[torch.randperm(len(mine), generator=draw)]
        for start in range(0, len(mine) - batch + 1, batch):
            yield text.inputs[shuffled[start : start + batch]].long()
