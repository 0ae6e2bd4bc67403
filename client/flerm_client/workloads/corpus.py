"""The source files of the running Python's standard library as one run of bytes: text that every machine has, seen once."""

from __future__ import annotations

import hashlib
import platform
import sysconfig
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

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


@lru_cache(maxsize=1)
def _text() -> bytes:
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(path for path in root.rglob("*.py") if not _SKIPPED.intersection(path.relative_to(root).parts))
    return b"\0".join(path.read_bytes() for path in files if not path.name.startswith("_sysconfigdata"))


@lru_cache(maxsize=4)
def corpus(length: int) -> Corpus:
    """The standard library's files in sorted order, parted by a zero byte, cut into chunks of `length` bytes.

    Which chunks are held out is fixed by a shuffle of its own, the same for every run.
    """
    text = np.frombuffer(_text(), dtype=np.uint8)
    chunks = (len(text) - 1) // length
    inputs = torch.from_numpy(text[: chunks * length].reshape(chunks, length).copy())
    labels = torch.from_numpy(text[1 : chunks * length + 1].reshape(chunks, length).copy())
    order = torch.randperm(chunks, generator=generator(0, "corpus split"))
    training = chunks - int(chunks * HELD_OUT)
    digest = hashlib.sha256(_text()).hexdigest()[:12]
    description = f"bytes of the standard library of Python {platform.python_version()}, {len(text)} bytes, sha256 {digest}"
    return Corpus(inputs, labels, order[:training], order[training:], description)
