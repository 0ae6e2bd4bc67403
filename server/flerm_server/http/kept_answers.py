"""Answers that are kept, compressed, while what they were made of does not change."""

from __future__ import annotations

import gzip
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Annotated, Any

from fastapi import Depends, Request, Response

MOST_BYTES = 8 << 20  # of all answers that are kept; a family's page takes about 15 KB
ANSWER_BYTES = 2 << 10  # of an answer without its body
GZIP_LEVEL = 5  # most of what level 9 saves, in a third of its time


@dataclass(slots=True)
class _Answer:
    """The answer to one question.

    version: of what `body` was made of; None before there is a body. computing: held by the caller
    who makes the body.
    """

    version: Hashable = None
    body: bytes = b""
    computing: threading.Lock = field(default_factory=threading.Lock)


class KeptAnswers:
    """Compressed bodies of answers, by what was asked. Those asked for longest ago make room.

    Callers may be on any thread. Of several that ask the same at once, one computes the answer and
    the others wait for that.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most = most_bytes
        self._size = 0
        self._known: OrderedDict[Hashable, _Answer] = OrderedDict()
        self._lock = threading.Lock()

    def get(
        self, asked: Hashable, version: Callable[[], Hashable], make: Callable[[], bytes]
    ) -> bytes:
        """The answer to `asked`, compressed.

        version: of what the answer is made of, now. An answer is given again only while this is
            what it was both before and after the answer was made.
        make: the body, not compressed.
        """
        answer = self._answer(asked)
        now = version()
        with self._lock:
            if answer.version == now:
                return answer.body
        with answer.computing:
            now = version()
            with self._lock:
                if answer.version == now:
                    return answer.body
            body = gzip.compress(make(), GZIP_LEVEL, mtime=0)
            if version() == now:
                self._keep(asked, answer, now, body)
            return body

    def _answer(self, asked: Hashable) -> _Answer:
        with self._lock:
            answer = self._known.get(asked)
            if answer is None:
                answer = self._known[asked] = _Answer()
                self._size += ANSWER_BYTES
            self._known.move_to_end(asked)
            self._make_room()
            return answer

    def _keep(self, asked: Hashable, answer: _Answer, version: Hashable, body: bytes) -> None:
        with self._lock:
            if self._known.get(asked) is answer:  # else it has made room meanwhile
                self._size += len(body) - len(answer.body)
                answer.version, answer.body = version, body
                self._make_room()

    def _make_room(self) -> None:
        while self._size > self._most:
            _, oldest = self._known.popitem(last=False)
            self._size -= len(oldest.body) + ANSWER_BYTES


async def _kept(request: Request) -> Any:
    return request.app.state.kept_answers


KeptAnswersDep = Annotated[KeptAnswers, Depends(_kept)]
"""The answers that this server keeps."""


def kept_response(
    kept: KeptAnswers,
    request: Request,
    version: Callable[[], Hashable],
    make: Callable[[], bytes],
    media_type: str,
) -> Response:
    """The answer to a GET whose body depends on the address, the caller and `version` alone.

    version, make: as in `KeptAnswers.get`.
    """
    principal = getattr(request.state, "principal", None)
    # By a digest, which is short however long the address is.
    asked = sha256(repr((str(request.url), principal)).encode()).digest()
    body = kept.get(asked, version, make)
    headers = {"Cache-Control": "no-store", "Vary": "Accept-Encoding"}
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["Content-Encoding"] = "gzip"
    else:
        body = gzip.decompress(body)
    return Response(body, media_type=media_type, headers=headers)
