"""LoRA on pretrained models: only adapters train, A at a rate of its own, at any LoRA rank; B is
matched at step 1, A at step 2."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import pytest
import torch

from flerm_client import RegistryClient
from flerm_core.errors import InvalidInput
from flerm_experiments.workloads import WORKLOADS, Scale
from flerm_experiments.workloads import lora as module
from flerm_experiments.workloads.train_loop import Job, train

pytest.importorskip("peft")
SHAPES = ["gpt2", "llama"]


@pytest.fixture(autouse=True, scope="module")
def short_pretraining(tmp_path_factory: pytest.TempPathFactory):
    """Pretrains for a few steps and not 600, in a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(module, "PRETRAINING_STEPS", 5)
        yield


@pytest.mark.parametrize("shape", SHAPES)
def test_adapters_of_any_rank_have_the_same_names_and_only_adapters_train(shape: str) -> None:
    workload = WORKLOADS[f"lora-{shape}"]
    base, big = (
        dict(workload.build(Scale(rank=rank), seed=0).named_parameters()) for rank in (1, 16)
    )
    trained = {name for name, p in base.items() if p.requires_grad}
    assert (
        trained
        == {name for name, p in big.items() if p.requires_grad}
        == {name for name in base if "lora_" in name}
    )
    assert {base[name].shape[0] for name in trained if "lora_A" in name} == {2}
    assert {big[name].shape[0] for name in trained if "lora_A" in name} == {32}


@pytest.mark.parametrize("shape", SHAPES)
def test_at_the_start_adapters_change_nothing_whatever_their_rank(shape: str) -> None:
    workload = WORKLOADS[f"lora-{shape}"]
    inputs, _ = next(workload.batches(seed=0))
    with torch.no_grad():
        outputs = [
            workload.output(workload.build(Scale(rank=rank), seed=0), inputs) for rank in (1, 8)
        ]
    assert torch.equal(*outputs)
    assert outputs[0].shape == (16, 64, 256)


def test_pretraining_is_done_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    module._pretrained_weights.cache_clear()
    first = module._pretrained_weights("gpt2")
    (kept,) = tmp_path.glob("flerm/pretrained-gpt2-*.pt")
    module._pretrained_weights.cache_clear()
    monkeypatch.setattr(module, "_pretrain", lambda _: pytest.fail("pretrained twice"))
    assert all(
        torch.equal(tensor, first[name])
        for name, tensor in module._pretrained_weights("gpt2").items()
    )
    assert kept.exists()
    module._pretrained_weights.cache_clear()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_higher_rank_is_matched_to_a_lower_from_the_first_step_on(
    shape: str, tmp_path: Path
) -> None:
    job = {"workload": f"lora-{shape}", "lr": 1e-3, "steps": 3, "registry": f"file://{tmp_path}"}
    recorded = train(Job(**job, mode="record"))  # type: ignore[arg-type]
    with RegistryClient(str(job["registry"])) as client:
        (recording,) = client.recordings(f"lora-{shape}")
    assert (recording.first_step, recording.last_step, recording.rows) == (1, 2, 2)
    assert all(value > 0 for value in recorded.fslr.values())
    assert {rate for name, rate in recorded.learning_rates.items() if "lora_A" in name} == {1e-4}
    matched = train(Job(**job, mode="match", scale=Scale(rank=8)))  # type: ignore[arg-type]
    assert set(matched.matched) == set(recorded.fslr)
    # Adam's first update of B has entries ±1 and A's entries shrink as 1 / r, so that what B adds,
    # (α / r) Σ ± A x over r rows, shrinks as 1 / r where the rows agree and as r^-3/2 where they do
    # not: every B wants a rate 8 to 23 times as high, give or take what the two rows of one base
    # scatter. A acts through B, which has moved by so much more, and wants a lower rate.
    assert all(matched.multipliers[name] > 2 for name in matched.matched if "lora_B" in name)
    assert (
        1 / 32
        < median(matched.multipliers[name] for name in matched.matched if "lora_A" in name)
        < 1 / 4
    )


@pytest.mark.parametrize(("scale", "field"), [(Scale(width=2), "width"), (Scale(depth=2), "depth")])
def test_a_scale_that_a_workload_does_not_have_is_refused_by_name(scale: Scale, field: str) -> None:
    with pytest.raises(
        InvalidInput, match=f"{field} is 2, but lora-gpt2 has no such scale; it has batch, rank"
    ):
        Job(workload="lora-gpt2", lr=1e-3, scale=scale)
    with pytest.raises(
        InvalidInput,
        match="rank is 2, but resmlp has no such scale; it has batch, depth, init_scale, width",
    ):
        Job(workload="resmlp", lr=1e-3, scale=Scale(rank=2))
