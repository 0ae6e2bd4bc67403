"""Wrappers that cannot be measured are refused by name; tests/distributed does it on many ranks."""

from __future__ import annotations

import types

import pytest
from torch import nn

from flerm_client.training.parallelism import find_ranks, find_sharding
from flerm_core.errors import InvalidInput, Unsupported


def of_module(module: str) -> nn.Module:
    """A wrapper around a layer, whose class is of `module`."""
    kind = types.new_class("Wrapper", (nn.Sequential,))
    kind.__module__ = module
    return kind(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        ("torch.distributed.fsdp.fully_sharded_data_parallel", "FSDP1 .* move to FSDP2"),
        ("deepspeed.runtime.engine", "a DeepSpeed engine .* use FSDP2"),
        ("torch.distributed.pipelining.stage", "a pipeline stage does not compute the outputs"),
    ],
)
def test_a_wrapper_that_cannot_be_measured_is_refused(module, sentence):
    with pytest.raises(Unsupported, match=sentence):
        find_ranks(of_module(module), None)
    with pytest.raises(Unsupported, match=sentence):
        find_ranks(nn.Sequential(of_module(module)), None)


def test_data_parallel_is_refused():
    with pytest.raises(Unsupported, match="use DistributedDataParallel"):
        find_ranks(nn.DataParallel(nn.Linear(2, 2)), None)


def test_what_is_no_module_is_refused():
    with pytest.raises(InvalidInput, match=r"model is a int; allowed is a torch\.nn\.Module"):
        find_ranks(3, None)


def test_a_plain_model_in_one_process_is_measured_alone_and_unsharded():
    model = nn.Linear(2, 2)
    ranks = find_ranks(model, None)
    assert (ranks.data_parallel_rank, ranks.size) == (0, 1)
    assert find_sharding(model, dict(model.named_parameters()), ranks) is None
