"""The order of the attempts of one recording."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from flerm_core.records.recording import Attempt, in_order

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
IDS = tuple("abcdef")
ARRIVED = st.permutations(IDS).flatmap(
    lambda ids: st.tuples(
        *(
            st.builds(
                lambda mine, minute, after: Attempt(
                    id=mine, started_at=NOON + timedelta(minutes=minute), after=after
                ),
                st.just(each),
                st.integers(0, 3),
                st.sampled_from(("", "", "unknown", *IDS)),
            )
            for each in ids
        )
    )
)


@given(ARRIVED)
def test_no_attempt_comes_before_the_one_that_it_resumed_from(arrived: tuple[Attempt, ...]) -> None:
    ordered = in_order(arrived)
    assert sorted(each.id for each in ordered) == list(IDS)
    by_id = {each.id: each for each in arrived}

    def chain(attempt: Attempt) -> list[str]:
        found: list[str] = []
        while attempt.after in by_id and attempt.after not in (*found, attempt.id):
            attempt = by_id[attempt.after]
            found.append(attempt.id)
        return found

    place = {each.id: at for at, each in enumerate(ordered)}
    for each in arrived:
        links = chain(each)
        if each.id not in links and all(
            link not in chain(by_id[link]) for link in links
        ):  # else it says nonsense: a circle
            assert all(place[link] < place[each.id] for link in links)


@given(ARRIVED)
def test_attempts_are_ordered_by_their_start_and_then_by_their_arrival(
    arrived: tuple[Attempt, ...],
) -> None:
    plain = [Attempt(id=each.id, started_at=each.started_at) for each in arrived]
    assert in_order(plain) == sorted(plain, key=lambda each: each.started_at)


def test_an_attempt_may_resume_one_that_began_at_the_last_moment_of_the_calendar() -> None:
    last = datetime.max.replace(tzinfo=UTC)
    first = Attempt(id="a", started_at=last)
    assert in_order([Attempt(id="b", started_at=NOON, after="a"), first])[0] == first
