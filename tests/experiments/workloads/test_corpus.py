"""Text in chunks: every token is an input once or kept for probes, labels are the tokens that
follow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from flerm_core.errors import InvalidInput
from flerm_experiments.workloads import WORKLOADS
from flerm_experiments.workloads import corpus as module
from flerm_experiments.workloads.corpus import byte_corpus, byte_pair_corpus


def rows(batch: torch.Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in batch}


def test_each_byte_of_the_corpus_is_an_input_once_or_kept_for_probes() -> None:
    text = byte_corpus(64)
    assert (
        torch.cat([text.training, text.held_out])
        .sort()
        .values.equal(torch.arange(len(text.inputs)))
    )
    assert len(text.held_out) == len(text.inputs) // 16
    workload = WORKLOADS["decoder"]
    seen = sum(inputs.numel() for inputs, _ in workload.batches(seed=0))
    assert seen == workload.steps_available * 16 * 64
    assert len(text.training) * 64 - seen < 16 * 64, "less than a step is left over"


def test_every_chunk_is_trained_on_at_most_once() -> None:
    text = byte_corpus(64)

    # Chunks are told apart by content where they differ; the multiset of all inputs must fit into
    # that of the training chunks.
    def key(chunks: torch.Tensor) -> torch.Tensor:
        weights = torch.randint(1, 2**40, (64,), generator=torch.Generator().manual_seed(0))
        return (chunks.long() * weights).sum(1)

    available = torch.bincount(key(text.inputs[text.training]).unique(return_inverse=True)[1])
    used_keys = torch.cat([key(inputs) for inputs, _ in WORKLOADS["decoder"].batches(seed=1)])
    values, used = used_keys.unique(return_counts=True)
    all_values = key(text.inputs[text.training]).unique()
    positions = torch.searchsorted(all_values, values)
    assert torch.equal(all_values[positions], values)
    assert (used <= available[positions]).all()


def test_labels_are_the_bytes_that_follow() -> None:
    text = byte_corpus(64)
    assert torch.equal(text.inputs[:, 1:], text.labels[:, :-1])
    assert torch.equal(text.inputs[1:, 0], text.labels[:-1, -1])


def test_the_corpus_is_source_code() -> None:
    assert b"import" in byte_corpus(64).inputs.numpy().tobytes()
    assert byte_corpus(64).inputs.numel() > 5_000_000


def test_the_byte_pair_encoding_is_made_once_and_is_shorter_than_the_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = module._library_text("code")[:200_000]
    monkeypatch.setattr(module, "_library_text", lambda _: text)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    byte_pair_corpus.cache_clear()
    first = byte_pair_corpus(64)
    assert len(list(tmp_path.glob("flerm/encoding-*.pt"))) == 1
    byte_pair_corpus.cache_clear()
    monkeypatch.setattr(module, "_encode_byte_pairs", lambda _: pytest.fail("encoded twice"))
    assert torch.equal(byte_pair_corpus(64).inputs, first.inputs)
    byte_pair_corpus.cache_clear()
    assert first.inputs.max() < WORKLOADS["decoder-bpe"].text.vocabulary == 1024
    assert 0.2 * len(text) < first.inputs.numel() < 0.6 * len(text)
    assert "1024 byte pairs of the standard library" in first.description


def test_text_too_short_for_the_ranks_probes_is_refused() -> None:
    short = module.chunked(np.zeros(64 * 100, dtype=np.uint8), 64, "a short text")
    with pytest.raises(
        InvalidInput,
        match="a short text: 6 chunks are held out for the probes of 2 ranks, but each needs 16",
    ):
        module.probe_batches(short, 16, seed=0, rank=0, world=2)
