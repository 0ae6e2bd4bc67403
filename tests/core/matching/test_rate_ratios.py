"""Parameter groups that begin at other rates than the base's."""

from __future__ import annotations

from flerm_core.matching.rate_ratios import rate_ratios, rate_words
from flerm_core.records.comparability import optimizer_key

NAMES = ("embed.weight", "layers.0.q.weight", "layers.1.q.weight", "head.weight")


def settings(lr: float, *rates: float) -> dict[str, object]:
    return dict(rate_ratios(dict(zip(NAMES, rates, strict=True)), lr))


ONE = settings(0.01, 0.01, 0.01, 0.01, 0.01)


def test_groups_at_the_runs_own_rate_have_no_ratio() -> None:
    assert settings(0.1 * 3, 0.3, 0.3, 0.3, 0.3) == ONE == {"rate_ratios": {}}


def test_a_rate_of_its_own_is_kept_by_template() -> None:
    assert settings(0.01, 0.1, 0.005, 0.005, 0.01) == {
        "rate_ratios": {"embed.weight": 10, "layers.*.q.weight": 0.5}
    }


def test_rates_that_differ_between_blocks_are_kept_by_name() -> None:
    assert settings(0.01, 0.01, 0.005, 0.01, 0.01) == {
        "rate_ratios": {"layers.0.q.weight": 0.5, "layers.1.q.weight": 1}
    }


def test_the_same_ratios_say_nothing_at_any_rate() -> None:
    base, own = settings(0.01, 0.1, 0.01, 0.01, 0.01), settings(0.02, 0.2, 0.02, 0.02, 0.02)
    assert rate_words(NAMES, own, base, 0.02) == ()


def test_a_group_that_only_the_base_has_is_said_with_its_factor() -> None:
    base = settings(0.01, 0.01, 0.01, 0.01, 0.1)
    assert rate_words(NAMES, ONE, base, 0.01) == (
        "tensors of this run begin at other rates than the base's: head.weight at 1 times the "
        "rate 0.01, and in the base at 10 times its rate, so that their updates are 0.1 times "
        "those that match; give the optimizer's parameter groups the base's rates",
    )


def test_an_optimizer_that_does_not_begin_at_its_key_is_said_of_all() -> None:
    (said,) = rate_words(NAMES, settings(0.01, 0.002, 0.002, 0.002, 0.002), ONE, 0.01)
    assert "base's: all at 0.2 times the rate 0.01, and in the base at 1 times" in said


def test_two_groups_that_changed_places_are_said() -> None:
    base = settings(0.01, 0.01, 0.1, 0.01, 0.01)
    own = settings(0.01, 0.01, 0.01, 0.1, 0.01)
    first, second = sorted(rate_words(NAMES, own, base, 0.01))
    assert "layers.0.q.weight at 1 times" in first
    assert "layers.1.q.weight at 10 times" in second


def test_blocks_that_the_base_lacks_are_not_compared() -> None:
    base = settings(0.01, 0.01, 0.005, 0.01, 0.01)
    deeper = (*NAMES, "layers.2.q.weight")
    rates = (0.01, 0.005, 0.01, 0.01, 0.02)
    own = dict(rate_ratios(dict(zip(deeper, rates, strict=True)), 0.01))
    assert rate_words(deeper, own, base, 0.01) == ()


def test_recordings_compare_whatever_the_ratios_are() -> None:
    """Where one group's rate is swept, ratios differ from run to run."""
    config = {"betas": [0.9, 0.99]} | settings(0.01, 0.1, 0.01, 0.01, 0.01)
    assert optimizer_key("Adam", config) == optimizer_key("Adam", {"betas": [0.9, 0.99]})


def test_very_many_rates_are_not_listed() -> None:
    names = [f"tensor-{at}.weight" for at in range(3000)]
    many = dict(rate_ratios({name: 1e-3 * (at + 2) for at, name in enumerate(names)}, 1e-3))
    assert len(str(many)) < 100
    assert rate_words(names, many, ONE, 1e-3) == ()


def test_of_many_ratios_the_farthest_off_are_said() -> None:
    """Fine-tuned models often have a rate for each layer."""
    names = [f"layers.{at}.w" for at in range(12)]
    own = dict(rate_ratios({name: 0.01 * 0.5**at for at, name in enumerate(names)}, 0.01))
    *said, rest = rate_words(names, own, ONE, 0.01)
    assert [each.partition("base's: ")[2].partition(" ")[0] for each in said] == names[:-5:-1]
    assert rest == "7 more tensors of this run begin at other rates than the base's"


def test_of_a_base_that_does_not_say_its_rates_nothing_is_claimed() -> None:
    """Recordings of earlier versions, and those made by hand, have no ratios."""
    own = settings(0.01, 0.1, 0.005, 0.005, 0.01)
    assert rate_words(NAMES, own, {"eps": 1e-8}, 0.01) == (
        "tensors of this run begin at other rates than the run's 0.01 (embed.weight at 10 times, "
        "layers.*.q.weight at 0.5 times this rate), and the base does not say at which rates its "
        "tensors began: their updates match only where the base's had the same factors",
    )
    assert rate_words(NAMES, ONE, {"eps": 1e-8}, 0.01) == ()
    frozen = settings(0.01, 0.0, 0.01, 0.01, 0.01)
    assert rate_words(NAMES, frozen, {"eps": 1e-8}, 0.01) == ()


def test_of_a_run_that_does_not_say_its_rates_nothing_is_claimed() -> None:
    base = settings(0.01, 0.01, 0.005, 0.01, 0.1)
    assert rate_words(NAMES, {}, base, 0.01) == (
        "tensors of the base began at other rates than its own (head.weight at 10 times, "
        "layers.0.q.weight at 0.5 times its rate), and this run does not say at which rates its "
        "tensors began: their updates match only where they had the same factors",
    )
    assert rate_words(NAMES, {}, ONE, 0.01) == rate_words(NAMES, {}, {}, 0.01) == ()
