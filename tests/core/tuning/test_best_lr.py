"""Which rate to use, and which to try next."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flerm_core.errors import NotFound
from flerm_core.tuning.best_lr import SweepRun, best_rate


def sweep(losses: dict[float, float], seed: int = 0) -> list[SweepRun]:
    """Runs by the exponent of their rate, 2^exponent."""
    return [SweepRun(lr=2.0**exponent, seed=seed, loss=loss) for exponent, loss in losses.items()]


def bowl(optimum: float, *exponents: float, seed: int = 0) -> list[SweepRun]:
    """Losses on a parabola in log2 lr."""
    return sweep({exponent: 1 + (exponent - optimum) ** 2 for exponent in exponents}, seed)


def diverged(exponent: float, seed: int = 0) -> SweepRun:
    return SweepRun(lr=2.0**exponent, seed=seed, loss=None, status="diverged")


@given(
    st.floats(-8.4, -7.6), st.sampled_from([(-9, -8, -7), (-9.5, -8, -7), (-10, -9, -8, -7.5, -6)])
)
def test_the_optimum_of_a_parabola_is_found(optimum: float, exponents: tuple[float, ...]) -> None:
    assert math.log2(best_rate("demo", bowl(optimum, *exponents)).optimum) == pytest.approx(
        optimum, abs=1e-6
    )


def test_the_curve_is_the_mean_over_seeds() -> None:
    best = best_rate("demo", [*bowl(-8.2, -9, -8, -7, seed=0), *bowl(-7.8, -9, -8, -7, seed=1)])
    assert math.log2(best.optimum) == pytest.approx(-8, abs=1e-9)
    assert best.optimum_spread == pytest.approx(0.4 / math.sqrt(2), rel=1e-6)
    assert (best.lr, best.loss) == (2.0**-8, pytest.approx(1.04))
    assert [point.lr for point in best.points] == [2.0**-9, 2.0**-8, 2.0**-7]
    assert [(point.seeds, point.diverged) for point in best.points] == [(2, 0)] * 3
    assert best.points[0].spread == pytest.approx((1.2**2 - 0.8**2) / math.sqrt(2))


def test_one_seed_has_no_spread() -> None:
    best = best_rate("demo", bowl(-8, -9, -8, -7))
    assert math.isnan(best.optimum_spread)
    assert math.isnan(best.points[0].spread)


def test_at_an_end_of_the_recorded_range_the_next_rate_lies_outside() -> None:
    assert best_rate("demo", bowl(-3, -9, -8, -7)).next_lr == 2.0**-6
    assert "highest recorded" in best_rate("demo", bowl(-3, -9, -8, -7)).advice
    assert best_rate("demo", bowl(-20, -9, -8, -7)).next_lr == 2.0**-10
    assert "lowest recorded" in best_rate("demo", bowl(-20, -9, -8, -7)).advice
    assert best_rate("demo", bowl(-8, -8)).next_lr == 2.0**-7


def test_in_a_coarse_grid_the_next_rate_lies_between_the_best_and_its_neighbour() -> None:
    assert best_rate("demo", bowl(-7.5, -11, -8, -5)).next_lr == pytest.approx(2.0**-6.5)
    assert best_rate("demo", bowl(-8.5, -11, -8, -5)).next_lr == pytest.approx(2.0**-9.5)


def test_in_a_fine_grid_the_optimum_is_the_answer() -> None:
    best = best_rate("demo", bowl(-8.3, -9, -8, -7))
    assert best.next_lr == best.optimum == pytest.approx(2.0**-8.3)
    assert (
        best.advice
        == "Use 0.00317: the optimum lies between the recorded rates 0.00195 and 0.00391, "
        "with the lower loss at 0.00391."
    )


def test_a_rate_where_a_run_diverged_is_not_the_best() -> None:
    runs = [*bowl(-7, -9, -8, -7, -6), diverged(-7, seed=1)]
    assert best_rate("demo", runs).lr == 2.0**-8
    assert best_rate("demo", runs).points[2].diverged == 1
    alone = best_rate(
        "demo", [SweepRun(lr=1.0, seed=0, loss=2.0), SweepRun(lr=1.0, seed=1, loss=math.inf)]
    )
    assert (alone.lr, alone.loss, alone.points[0].diverged) == (1.0, 2.0, 1)


def test_below_divergence_there_is_nothing_to_fit() -> None:
    near = best_rate("demo", [*bowl(-5, -9, -8, -7), diverged(-6)])
    assert near.optimum == near.next_lr == 2.0**-7
    assert "runs diverge" in near.advice
    assert best_rate("demo", [*bowl(-5, -9, -8, -7), diverged(-3)]).next_lr == 2.0**-5


def test_equal_losses_have_their_optimum_at_the_best() -> None:
    assert best_rate("demo", sweep({-9: 1.0, -8: 1.0, -7: 1.0})).optimum == 2.0**-9


def test_runs_without_an_end_do_not_count() -> None:
    runs = [
        *bowl(-8, -9, -8, -7),
        SweepRun(lr=9.0, seed=0, loss=0.1, status="running"),
        SweepRun(lr=8.0, seed=0, loss=None),
    ]
    assert len(best_rate("demo", runs).points) == 3
    with pytest.raises(
        NotFound, match="'demo' has no completed run with a final loss; 2 runs in all"
    ):
        best_rate("demo", runs[3:])


def test_the_rates_to_try_next_are_named_until_the_curve_is_settled() -> None:
    def suggested(*exponents: float) -> list[float]:
        best = best_rate("demo", bowl(-7.7, *exponents))
        return [math.log2(rate) for rate in best.suggested_rates]

    assert suggested(-9) == [-8, -10]
    assert suggested(-9, -8) == [-7]
    assert suggested(-10, -8, -6) == [-7]
    assert suggested(-9, -8, -7) == []


def test_a_rate_where_most_seeds_diverged_is_not_fitted() -> None:
    runs = [run for seed in range(3) for run in sweep({0: 2.2, 1: 2.0}, seed)]
    found = best_rate("demo", [*runs, diverged(2, 0), diverged(2, 1), *sweep({2: 1.9}, 2)])
    assert (found.lr, found.optimum, found.next_lr) == (2.0, 2.0, 2.0)
    assert "at 4, runs diverge" in found.advice


def test_rates_are_compared_by_the_seeds_that_they_share() -> None:
    """A sweep trains later seeds at the optimum's three rates only."""
    first = sweep({0: 3.0, 1: 2.5, 2: 2.4, 3: 2.45, 4: 2.6}, 0)
    later = [run for seed in (1, 2) for run in sweep({1: 3.5, 2: 3.4, 3: 3.45}, seed)]
    found = best_rate("demo", [*first, *later])
    assert found.lr == 4.0, "the mean at 16, over seed 0 alone, is lower"
    assert found.optimum == pytest.approx(best_rate("demo", first).optimum)
    assert found.loss == pytest.approx((2.4 + 3.4 + 3.4) / 3)
    assert found.suggested_rates == ()
    assert "run with other seeds" in found.advice
    assert "other seeds" not in best_rate("demo", first).advice


def test_a_neighbour_of_the_best_rate_counts_by_shared_seeds() -> None:
    first = bowl(0.2, -1, 0, 1, seed=0)
    later = sweep({0: 7.0, 1: 7.0 + 0.6}, seed=1)  # seed 0 rises by 0.6 from rate 1 to rate 2
    assert best_rate("demo", [*first, *later]).optimum == pytest.approx(2**0.2)


def test_a_better_rate_that_only_one_seed_tried_is_followed() -> None:
    """The seed with the higher level tried one rate more."""
    runs = [*sweep({0: 1.0, 1: 0.9}, 0), *sweep({0: 3.0, 1: 2.9, 2: 2.7}, 1)]
    assert best_rate("demo", runs).lr == 4.0
    assert best_rate("demo", runs).suggested_rates == (8.0,)


def test_rates_without_a_common_seed_are_compared_by_their_means() -> None:
    runs = [run for at, loss in enumerate((2.0, 1.0, 3.0)) for run in sweep({at: loss}, at)]
    assert best_rate("demo", runs).lr == 2.0
    assert best_rate("demo", [*runs, *sweep({2: 3.1}, 7)]).lr == 2.0
