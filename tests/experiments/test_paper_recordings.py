"""The paper's files as trajectories: names, steps, unmeasured tensors, and files that are
refused."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import pytest
import torch

from flerm_core.errors import InvalidInput
from flerm_experiments.paper_recordings import read_ptnorms
from tests.experiments.sweeps import PAPER_NAMES


def test_a_file_is_a_trajectory_of_its_names_at_the_papers_steps(paper_files):
    found = read_ptnorms(Path(paper_files[1]))
    assert (found.lr, found.seed) == (0.01, 1)
    assert found.trajectory.names == list(PAPER_NAMES)
    assert found.trajectory.steps.tolist() == [1, 101, 201]
    assert found.trajectory.values[:, 0].tolist() == [16.0, 2.0, 1.0]


def test_an_unmeasured_tensor_stays_unmeasured(tmp_path):
    path = tmp_path / "lora.ptnorms"
    torch.save({"a": [0.0, 1.0], "b": [math.nan, 1.0]}, path)
    assert torch.tensor(read_ptnorms(path).trajectory.values).isnan().tolist() == [
        [True, True],
        [False, False],
    ]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ([1.0], "allowed is a dictionary of tensor names to lists"),
        ({"a": [1.0], "b": [1.0, 2.0]}, r"its tensors have \[1, 2\] measurements"),
        ({"a": []}, r"its tensors have \[0\] measurements"),
        ({"a": [math.inf]}, "a holds inf; allowed are finite numbers"),
        ({"a": ["much"]}, "a holds str; allowed are numbers"),
    ],
)
def test_a_file_of_another_form_is_refused(content, why, tmp_path):
    path = tmp_path / "some.ptnorms"
    torch.save(content, path)
    with pytest.raises(InvalidInput, match=why):
        read_ptnorms(path)


def test_code_in_a_file_is_not_run(tmp_path):
    path = tmp_path / "evil.ptnorms"

    class Evil:
        def __reduce__(self):
            return (path.unlink, ())

    path.write_bytes(pickle.dumps({"a": [Evil()]}))
    with pytest.raises(InvalidInput, match=r"not a .ptnorms file"):
        read_ptnorms(path)
    assert path.exists()
