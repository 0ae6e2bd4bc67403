"""Trajectories: what they hold, how they are read between measurements, averaged, kept in files."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flerm_core import Trajectory
from flerm_core.errors import DataLoss, InvalidInput, NotFound

NAN = float("nan")


def one(values: list[float], steps: list[int] | None = None) -> Trajectory:
    """A trajectory of a single tensor."""
    return Trajectory(
        ["w"], [(2, 2)], steps or list(range(1, len(values) + 1)), [[value] for value in values]
    )


def two() -> Trajectory:
    return Trajectory(
        ["a.weight", "b.bias"],
        [(2, 3), (3,)],
        [1, 11, 21],
        [[1.0, NAN], [2.0, 4.0], [4.0, 1.0]],
        losses=[3.0, NAN, 1.0],
        tokens=[-1, 100, 200],
    )


def test_the_repr_says_how_many_rows_and_parameters_there_are() -> None:
    trajectory = two()
    assert repr(trajectory) == "Trajectory(2 parameters, 3 rows, steps 1 to 21)"
    assert len(trajectory) == 3
    assert trajectory.names == ["a.weight", "b.bias"]
    assert trajectory.bands == ["input", "bias"]
    assert trajectory.values.dtype == np.float32
    assert trajectory == two()
    assert trajectory != two().between(last=11)


def test_its_arrays_are_read_only_and_the_callers_stay_as_they_were() -> None:
    mine = np.ones((1, 1), np.float32)
    trajectory = Trajectory(["w"], [()], [1], mine)
    with pytest.raises(ValueError, match="read-only"):
        trajectory.values[0, 0] = 2
    mine[0, 0] = 3.0


def test_rows_go_out_and_come_in_as_measurements() -> None:
    rows = list(two())
    assert [row.loss for row in rows] == [3.0, None, 1.0]
    assert [row.tokens for row in rows] == [None, 100, 200]
    assert Trajectory.from_measurements(two().parameters, rows) == two()
    assert len(Trajectory.from_measurements(two().parameters, [])) == 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"values": [[1.0, -1.0]]},
            "values: -1.0 at row 0, column 1; allowed are finite numbers from 0, and NaN",
        ),
        ({"values": [[1.0, np.inf]]}, "values: inf at row 0, column 1"),
        (
            {"values": [[1.0]]},
            r"values: shape \[1, 1\] given; \[steps, names\] = \[1, 2\] is allowed",
        ),
        (
            {"steps": [2.5]},
            "steps: an array of 1 dimensions of float64 given; a list of integers is allowed",
        ),
        ({"steps": [-1]}, "steps: -1 is negative"),
        ({"steps": [5, 5], "values": [[1, 1], [1, 1]]}, "steps: 5 follows 5; steps must ascend"),
        ({"names": ["a", "a"]}, "names: 1 of the 2 names are there twice"),
        ({"shapes": [()]}, "shapes: 1 given for 2 names"),
        (
            {"tokens": [1, 2]},
            r"tokens: shape \[2\] given; one value for each of the 1 steps is allowed",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(change: dict[str, object], sentence: str) -> None:
    given_ = {
        "names": ["a", "b"],
        "shapes": [(), ()],
        "steps": [1],
        "values": [[1.0, 1.0]],
    } | change
    with pytest.raises(InvalidInput, match=sentence):
        Trajectory(**given_)  # type: ignore[arg-type]


def test_between_measurements_the_logarithm_is_linear_in_the_step() -> None:
    trajectory = one([1.0, 4.0], [1, 101])
    assert trajectory.at() == {"w": 1.0}
    assert trajectory.at(51)["w"] == pytest.approx(2.0, rel=1e-12)
    assert trajectory.at(26)["w"] == pytest.approx(2**0.5, rel=1e-12)


def test_outside_the_measured_steps_the_nearest_row_is_read() -> None:
    trajectory = one([3.0, 5.0], [10, 20])
    assert trajectory.at(0) == {"w": 3.0}
    assert trajectory.at(20) == {"w": 5.0}
    assert trajectory.at(10**6) == {"w": 5.0}


def test_unmeasured_rows_are_bridged_but_nothing_is_known_before_the_first() -> None:
    trajectory = one([NAN, 1.0, NAN, 4.0, NAN])
    assert np.isnan(trajectory.at(1)["w"])
    assert np.isnan(trajectory.at(1.5)["w"])
    assert trajectory.at(3)["w"] == pytest.approx(2.0, rel=1e-12)
    assert trajectory.at(5) == {"w": 4.0}
    assert np.isnan(one([NAN, NAN]).at(2)["w"])


def test_next_to_a_zero_interpolation_is_linear() -> None:
    assert one([0.0, 1.0]).at(1.25) == {"w": 0.25}


def test_a_step_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidInput, match="step"):
        one([1.0]).at(-1)
    with pytest.raises(NotFound, match="without rows"):
        Trajectory(["w"], [()], [], np.empty((0, 1))).at()


@given(st.lists(st.floats(2.0**-100, 2.0**100, width=32), min_size=1, max_size=8))
def test_at_a_measured_step_it_reads_what_was_measured(values: list[float]) -> None:
    trajectory = one(values)
    assert [trajectory.at(step)["w"] for step in range(1, len(values) + 1)] == trajectory.values[
        :, 0
    ].tolist()


def test_rows_and_parameters_can_be_picked() -> None:
    assert two().between(2, 11).steps.tolist() == [11]
    assert two().between(12, 20).steps.tolist() == []
    assert two().select("*.bias").names == ["b.bias"]
    assert two().select(["b*", "a*"]).names == ["a.weight", "b.bias"]
    with pytest.raises(
        NotFound, match=r"'x\*' matches none of the parameters; there are a.weight, b.bias"
    ):
        two().select("x*")


def test_thinning_keeps_both_ends() -> None:
    long = one([1.0] * 100)
    assert long.thinned(4).steps.tolist() == [1, 34, 67, 100]
    assert long.thinned(1).steps.tolist() == [100]
    assert long.thinned(0) is long
    assert len(long.thinned(1000)) == 100


def test_smoothing_is_a_normalised_average_of_squares() -> None:
    smooth = one([1.0, 7.0, NAN, 1.0]).smoothed(0.5)
    expected = [1.0, np.sqrt((0.5 * 1 + 49) / 1.5), NAN, np.sqrt((0.25 * 1 + 0.5 * 49 + 1) / 1.75)]
    np.testing.assert_allclose(smooth.values[:, 0], expected, rtol=1e-6)
    assert two().smoothed(0.0) == two()
    with pytest.raises(InvalidInput, match=r"ema_decay: 1\.0 is out of range"):
        two().smoothed(1.0)


def test_seeds_are_averaged_geometrically_with_their_spread() -> None:
    mean, spread = Trajectory.average([one([1.0, 2.0]), one([4.0, 2.0])])
    np.testing.assert_allclose(mean.values[:, 0], [2.0, 2.0], rtol=1e-7)
    np.testing.assert_allclose(spread[:, 0], [np.log(4) / np.sqrt(2), 0.0], atol=1e-12)


def test_a_seed_that_did_not_measure_does_not_count() -> None:
    mean, spread = Trajectory.average([one([NAN, 0.0, 0.0]), one([3.0, 5.0, 0.0])])
    np.testing.assert_allclose(mean.values[:, 0], [3.0, 5.0, 0.0], rtol=1e-7)
    assert np.isnan(spread).all()


def test_seeds_measured_at_other_steps_are_read_at_all_of_them() -> None:
    mean, _ = Trajectory.average([one([1.0, 4.0], [1, 3]), one([2.0], [2])])
    assert mean.steps.tolist() == [1, 2, 3]
    np.testing.assert_allclose(mean.values[:, 0], [2**0.5, 2.0, 8**0.5], rtol=1e-6)


def test_one_seed_averages_to_itself() -> None:
    mean, spread = Trajectory.average([two()])
    np.testing.assert_array_equal(mean.values, two().values)
    assert np.isnan(spread).all()


def test_runs_of_different_models_are_not_averaged() -> None:
    wide = Trajectory(["w"], [(4, 4)], [1], [[1.0]])
    with pytest.raises(
        InvalidInput, match=r"'w' is of shape \[2, 2\] in one and \[4, 4\] in another"
    ):
        Trajectory.average([one([1.0]), wide])
    with pytest.raises(InvalidInput, match="only some of them have v, w"):
        Trajectory.average([one([1.0]), Trajectory(["v"], [(2, 2)], [1], [[1.0]])])
    with pytest.raises(InvalidInput, match="none given"):
        Trajectory.average([])


values = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=5),
    elements=st.floats(0, 2.0**100, width=32),
)


@given(values, st.data())
def test_a_saved_trajectory_is_loaded_with_all_its_content(
    tmp_path_factory: pytest.TempPathFactory, values: np.ndarray, data: st.DataObject
) -> None:
    values[data.draw(hnp.arrays(np.bool_, values.shape))] = np.nan
    rows, columns = values.shape
    names = data.draw(
        st.lists(st.text(min_size=1, max_size=8), min_size=columns, max_size=columns, unique=True)
    )
    names = [name.encode("utf-8", "replace").decode() + str(at) for at, name in enumerate(names)]
    trajectory = Trajectory(
        names, [(at, 1) for at in range(columns)], range(rows), values, losses=np.arange(rows) / 3
    )
    path = tmp_path_factory.mktemp("trajectory") / "run.flerm"
    trajectory.save(path)
    assert Trajectory.load(path) == trajectory
    assert [each.name for each in path.parent.iterdir()] == ["run.flerm"]


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    two().save(path)
    whole = path.read_bytes()
    for broken in (b"", whole[: len(whole) // 2], b"something else", bytes(len(whole))):
        path.write_bytes(broken)
        with pytest.raises(DataLoss, match=r"run\.npz is not a trajectory that can be read"):
            Trajectory.load(path)
    with pytest.raises(NotFound, match=r"there is no file .*nowhere\.npz"):
        Trajectory.load(tmp_path / "nowhere.npz")
