"""The built-in data: reproducible, shared out between ranks without overlap, and disjoint from what
probes see."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from flerm_core.errors import InvalidInput
from flerm_experiments.workloads import WORKLOADS
from flerm_experiments.workloads import corpus as module
from flerm_experiments.workloads.corpus import byte_corpus, byte_pair_corpus
from flerm_experiments.workloads.digits_data import load_digits_images

ALL = ["resmlp", "mlp", "decoder", "lora-gpt2"]  # the others have these data


def rows(batch: torch.Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in batch}


@pytest.mark.parametrize("name", ALL)
def test_batches_and_probes_repeat_for_a_seed_and_differ_between_seeds(name: str) -> None:
    workload = WORKLOADS[name]
    for walk in (workload.batches, workload.probe):
        first, again, other = (list(islice(walk(seed=seed), 3)) for seed in (0, 0, 1))
        flat = [
            torch.cat([item[0] if isinstance(item, tuple) else item for item in run])
            for run in (first, again, other)
        ]
        assert torch.equal(flat[0], flat[1])
        assert not torch.equal(flat[0], flat[2])


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_together_see_what_one_process_sees(name: str, world: int) -> None:
    workload = WORKLOADS[name]
    alone = islice(workload.batches(seed=3), 3)
    shared = zip(
        *(workload.batches(seed=3, rank=rank, world=world) for rank in range(world)), strict=False
    )
    for (inputs, labels), parts in zip(alone, shared, strict=False):
        assert all(len(part[0]) == workload.batch // world for part in parts)
        assert torch.equal(torch.stack([part[0] for part in parts], 1).flatten(0, 1), inputs)
        assert torch.equal(torch.stack([part[1] for part in parts], 1).flatten(0, 1), labels)


@pytest.mark.parametrize("name", ALL)
def test_a_batch_that_the_ranks_cannot_share_evenly_is_refused(name: str) -> None:
    with pytest.raises(
        InvalidInput, match=f"3 ranks cannot share the {WORKLOADS[name].batch} examples"
    ):
        WORKLOADS[name].batches(seed=0, rank=0, world=3)


def test_an_epoch_of_digits_is_every_training_example_once() -> None:
    batches = list(islice(WORKLOADS["resmlp"].batches(seed=0), 48))
    for epoch in (batches[:24], batches[24:]):
        assert torch.equal(
            torch.cat([inputs for inputs, _ in epoch]).sort(0).values,
            load_digits_images().images.sort(0).values,
        )
    assert not torch.equal(batches[0][0], batches[24][0])


def test_digits_are_standardised_and_split_for_good() -> None:
    data = load_digits_images()
    assert (len(data.images), len(data.held_out_images)) == (1536, 261)
    assert data.images.mean(0).abs().max() < 1e-5
    assert data.images.std(0).max() < 1.0 + 1e-5
    assert data.held_out_images.abs().max() < 20
    assert set(data.labels.tolist()) == set(range(10))


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


def test_probes_show_only_held_out_examples_and_never_end() -> None:
    allowed = rows(load_digits_images().held_out_images)
    assert all(rows(batch) <= allowed for batch in islice(WORKLOADS["resmlp"].probe(seed=0), 12))
    text = byte_corpus(64)
    allowed = rows(text.inputs[text.held_out].long())
    passes = 3 * len(text.held_out) // 16
    for index, batch in enumerate(islice(WORKLOADS["decoder"].probe(seed=0), passes)):
        assert batch.shape == (16, 64)
        if index % 200 == 0:
            assert rows(batch) <= allowed


@pytest.mark.parametrize("name", ALL)
def test_ranks_probe_with_different_batches_of_full_size(name: str) -> None:
    workload = WORKLOADS[name]
    first, second = (next(workload.probe(seed=0, rank=rank, world=2)) for rank in (0, 1))
    assert len(first) == len(second) == workload.batch
    assert not torch.equal(first, second)


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
