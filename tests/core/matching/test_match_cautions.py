"""When not to trust a match, by what is known of base, run and family, in exact sentences."""

from __future__ import annotations

from dataclasses import replace

from flerm_core.errors import NotFound
from flerm_core.matching.match_cautions import RunFacts, match_cautions
from flerm_core.records.queries import BestQuery
from flerm_core.records.recording import Recording
from flerm_core.tuning.best_lr import Best, SweepRun, best_rate
from flerm_core.tuning.cautions import ONE_SEED

from .test_batch_change import BASE, recording

TWO_SEEDS = replace(BASE, seeds=2, lr=2.0**-5)
KNOWN = RunFacts(batch_size=64, steps=300)
REGRET = "At the base's rate, the loss of 2 matched curves was 0.1 % above the lowest."


def best(places: range, optimum: float = -5.0) -> Best:
    sweep = [SweepRun(lr=2.0**at, seed=0, loss=1 + (at - optimum) ** 2) for at in places]
    return replace(best_rate("f", sweep), cautions=(REGRET,))


def said(
    found=TWO_SEEDS, run: RunFacts = KNOWN, answer: Best | None = None, **config: object
) -> tuple[str, ...]:
    """The cautions where `answer` is the family's best rate, without its regret."""
    asked: list[BestQuery] = []

    def ask(query: BestQuery) -> Best:
        asked.append(query)
        return answer or best(range(-8, -2))

    def find(recording_id: str) -> Recording:
        assert recording_id == found.sources[0]
        return recording(0, config=config)

    words = match_cautions(found, run, best=ask, recording=find)
    assert words[-1] == REGRET
    (query,) = asked
    assert query.cautions and query.pick == {
        "optimizer": "Adam(betas=[0.9, 0.99], eps=1e-08)"
    }  # of the targets' experiment
    return words[:-1]


def test_a_sound_base_of_the_same_batch_has_its_regret_alone() -> None:
    assert said() == ()


def test_one_seed_is_said() -> None:
    assert said(replace(BASE, lr=2.0**-5)) == (ONE_SEED,)


def test_a_rate_far_from_the_bases_optimum_is_said() -> None:
    assert said(replace(TWO_SEEDS, lr=2.0**-4)) == (
        "The learning rate 0.0625 lies 1.00 octaves above the base's optimum 0.0312: a match "
        "carries over how the base trains, and at this rate the base trains worse.",
    )
    assert said(replace(TWO_SEEDS, lr=2.0**-5.4)) == ()


def test_an_optimum_at_an_end_of_the_bases_rates_is_said() -> None:
    assert said(answer=best(range(-8, -4))) == (
        "The best rate 0.0312 is the highest recorded, so the optimum may lie above it: try "
        "0.0625.",
    )


def test_another_initialisation_is_said() -> None:
    run = replace(KNOWN, config={"init_scale": 4})
    (sentence,) = said(run=run, init_scale=1)
    assert sentence.startswith("init_scale is 4 for this model and 1 in the base: matching makes")


def test_another_batch_or_one_that_is_not_known_is_said_unless_the_run_follows() -> None:
    other = replace(KNOWN, batch_size=256)
    (sentence,) = said(run=other)
    assert sentence.startswith("A step of this run has 256 examples and a step of the base 64: ")
    assert sentence.endswith("longer or shorter than the base.")
    assert said(run=replace(KNOWN, batch_size=None)) == (
        "A step of the base has 64 examples, and of this run the number is not known: give "
        "batch_size= where it is another.",
    )
    assert said(replace(TWO_SEEDS, batch_size=None)) == (
        "The base's recordings do not all say one batch size, so nobody can tell whether this "
        "run's is another: record the base with batch_size=, or set that tag (flerm tag).",
    )
    assert said(run=replace(other, steps=10_000, follows=True)) == ()


def test_a_run_of_twice_the_bases_length_is_said() -> None:
    assert said(run=replace(KNOWN, steps=600)) == (
        "The base was trained for 300 steps and this run is for 600: the best rate of a longer run "
        "is lower (docs/decisions.md, 58), and rates follow the length where batch_size= and "
        "total_steps= are given.",
    )
    assert said(run=replace(KNOWN, steps=599)) == ()


def test_what_the_registry_cannot_answer_is_said_and_stops_nothing() -> None:
    def refuse(asked: object) -> object:
        raise NotFound("family: 'f' has no completed run with a final loss; 1 run in all")

    words = match_cautions(TWO_SEEDS, KNOWN, best=refuse, recording=lambda _: recording(0))  # type: ignore[arg-type]
    assert words == (
        "How far to trust the base's rate is not known: family: 'f' has no completed run with a "
        "final loss; 1 run in all.",
    )
    own = replace(TWO_SEEDS, sources=())
    assert match_cautions(own, KNOWN, best=refuse, recording=refuse) == ()  # type: ignore[arg-type]
