"""Central differences: the step follows from the coarsest dtype, wherever an input is given."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flerm_core.measure.autodiff.central_difference import difference_along
from flerm_core.measure.autodiff.module_replay import CallStart


class Rounding(nn.Module):
    """Computes in the dtype of its input: weights in float32, bfloat16 where `x` is so."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 64))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.to(x.dtype)


def test_an_input_by_keyword_counts_as_one_by_position() -> None:
    module, x = Rounding(), torch.ones(64, dtype=torch.bfloat16)
    changes = {"weight": torch.full((64,), 1e-3)}
    results = [
        difference_along(
            module, changes, args, kwargs, CallStart(module), lambda y: [y], widened=False
        )[0]
        for args, kwargs in (((x,), {}), ((), {"x": x}))
    ]
    assert torch.equal(*results)
    # y = x·w, so its derivative along ΔW is ΔW itself; bfloat16 has a precision of 2⁻⁸.
    torch.testing.assert_close(results[1].mean(), torch.tensor(1e-3), rtol=0.02, atol=0)
