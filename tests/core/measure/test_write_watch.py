"""Parameters that a forward writes into are found at the write, and put back."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flerm_core.measure.write_watch import WriteWatch, watching


class Writer(nn.Module):
    """Writes into all its parameters but `read`, each in another way."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("in_place", "through_data", "other_data", "out", "item", "of_a_list", "read"):
            setattr(self, name, nn.Parameter(torch.ones(3)))
        self.rows = nn.Embedding(4, 3, max_norm=0.1)
        self.cut = nn.Parameter(torch.ones(2), requires_grad=False)  # a write without a change

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.in_place.mul_(2)
        self.through_data.data.mul_(3)
        self.other_data.data = self.other_data.data * 2
        torch.add(self.out.data, 1, out=self.out.data)
        self.item.data[0] = 5.0
        torch._foreach_mul_([self.of_a_list.data], 2.0)
        self.cut.data.clamp_(-1, 1)
        return x * self.read + self.rows(torch.tensor([1, 2])).sum()


def test_what_a_forward_writes_is_found_and_put_back_without_a_trace() -> None:
    model, watch = Writer(), WriteWatch()
    parameters = dict(model.named_parameters())
    before = {
        name: (p.detach().clone(), p._version, p.data_ptr()) for name, p in parameters.items()
    }
    told = {}
    with watch.kept(model.parameters(), lambda p, value: told.update({p: value})):
        with watching():
            outputs = model(torch.ones(3))
        watch.note_replaced()
        assert set(watch.written) == told.keys()
        assert {n for n, p in parameters.items() if p not in set(watch.written)} == {"read"}
        assert model.in_place.tolist() == [2.0] * 3
        outputs.sum().backward()
    assert all(told[p].equal(before[name][0]) for name, p in parameters.items() if p in told)
    for name, p in parameters.items():
        assert (p._version, p.data_ptr()) == before[name][1:]
        assert p.detach().equal(before[name][0])
