"""Answers that the server keeps: computed once, and never given after a change."""

from __future__ import annotations

import gzip
import threading
from concurrent.futures import ThreadPoolExecutor

from flerm_server.http.kept_answers import ANSWER_BYTES, KeptAnswers


def test_of_several_that_ask_at_once_one_computes():
    kept, computed = KeptAnswers(), []
    begun, go_on = threading.Event(), threading.Event()

    def make() -> bytes:
        computed.append(1)
        begun.set()
        assert go_on.wait(60)
        return b"body"

    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(kept.get, "page", lambda: 1, make)
        assert begun.wait(60)
        others = [pool.submit(kept.get, "page", lambda: 1, make) for _ in range(5)]
        go_on.set()
        bodies = {each.result(60) for each in (first, *others)}
    assert [gzip.decompress(each) for each in bodies] == [b"body"]
    assert len(computed) == 1


def test_an_answer_is_made_anew_after_a_change_and_after_one_while_it_was_made():
    kept, version, computed = KeptAnswers(), [1], []

    def make() -> bytes:
        computed.append(version[0])
        if version[0] == 2 and len(computed) == 2:
            version[0] = 3
        return b"%d" % version[0]

    for asked, answer, count in ((1, b"1", 1), (1, b"1", 1), (2, b"3", 2), (3, b"3", 3)):
        version[0] = max(version[0], asked)
        assert gzip.decompress(kept.get("page", lambda: version[0], make)) == answer
        assert len(computed) == count
    kept.get("page", lambda: version[0], make)
    assert len(computed) == 3


def test_answers_asked_for_longest_ago_make_room():
    kept, computed = KeptAnswers(most_bytes=3 * (ANSWER_BYTES + 100)), []

    def ask(name: int) -> None:
        kept.get(name, lambda: 1, lambda: computed.append(name) or b"body")

    for name in (1, 2, 3, 1, 4, 1, 3, 2):
        ask(name)
    # The fourth took the place of the second, which was asked for longest ago.
    assert computed == [1, 2, 3, 4, 2]


def test_an_error_is_the_callers_own_and_nothing_is_kept_of_it():
    kept = KeptAnswers()

    def fail() -> bytes:
        raise LookupError

    for _ in range(2):
        try:
            kept.get("page", lambda: 1, fail)
        except LookupError:
            continue
        raise AssertionError
    assert gzip.decompress(kept.get("page", lambda: 1, lambda: b"body")) == b"body"
