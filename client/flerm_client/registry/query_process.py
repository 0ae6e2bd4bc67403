"""Questions that a training process asks before it starts: targets, the best rate. No gRPC object comes near it.

The call runs in a `python -m flerm_client.registry.query_process` child, is given up after `timeout` seconds, and falls back to the last answer
to the same question, kept in `targets/` under the spool folder. In a folder registry (file:///) the core answers on the spot.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flerm_client.registry.address import (
    RegistryAddress,
    address_of,
    child_command,
    child_environment,
    token_of,
)
from flerm_client.spool.paths import default_folder
from flerm_core import errors
from flerm_core.records.recording import now
from flerm_proto.v1 import registry_pb2 as pb

if TYPE_CHECKING:
    from flerm_core.matching.targets import Targets
    from flerm_core.records.queries import BestQuery, TargetQuery
    from flerm_core.tuning.best_lr import Best

log = logging.getLogger("flerm.fetch")

_LENGTH = struct.Struct("<I")
_HARD_SECONDS = 3.0  # beyond the timeout: for the child's own start and end
_REQUESTS: dict[str, Any] = {"GetTargets": pb.GetTargetsRequest, "GetBest": pb.GetBestRequest}


def fetch_targets(
    registry: str | os.PathLike[str] | None,
    query: TargetQuery,
    *,
    token: str | None = None,
    timeout: float = 60.0,
) -> Targets:
    """The answer to `query` of the registry at `registry` (None: FLERM_REGISTRY).

    While it cannot be reached it is asked again, for `timeout` seconds; then the cached answer to the same query counts, with a
    warning that tells its age; without one, `Unreachable`. The registry's own errors are raised as they are.
    """
    address = address_of(registry)
    if address.folder is not None:
        from flerm_client.registry.folder_backend import FolderBackend

        return FolderBackend(address.folder).targets(query)
    from flerm_proto.query_messages import query_to, targets_from

    answer = _ask(address, "GetTargets", query_to(query), token, timeout)
    return targets_from(pb.TargetsChunk.FromString(part) for part in _parts(answer))


def fetch_best(
    registry: str | os.PathLike[str] | None,
    query: BestQuery | str,
    *,
    token: str | None = None,
    timeout: float = 60.0,
) -> Best:
    """The best rate of a family (its name: base recordings, variant plain), asked like `fetch_targets`."""
    from flerm_core.records.queries import BestQuery

    query = BestQuery(family=query) if isinstance(query, str) else query
    address = address_of(registry)
    if address.folder is not None:
        from flerm_client.registry.folder_backend import FolderBackend

        return FolderBackend(address.folder).best(query)
    from flerm_proto.query_messages import best_from, best_query_to

    answer = _ask(address, "GetBest", best_query_to(query), token, timeout)
    return best_from(pb.Best.FromString(next(_parts(answer))))


def _ask(
    address: RegistryAddress, method: str, request: Any, token: str | None, timeout: float
) -> bytes:
    """The answer's messages, each behind its length."""
    asked = request.SerializeToString(deterministic=True)
    cache = _cache_file(address, method, asked)
    try:
        answer = _run(address, method, asked, token, timeout)
    except errors.Unreachable as error:
        kept = _cached(cache)
        if kept is None:
            raise
        fetched_at, answer = kept
        log.warning(
            "%s; going on with its answer to the same query of %s, %s old",
            error,
            fetched_at.isoformat(),
            _age(fetched_at),
        )
        return answer
    _keep(cache, address, answer)
    return answer


def _run(
    address: RegistryAddress, method: str, asked: bytes, token: str | None, timeout: float
) -> bytes:
    command = child_command(
        "flerm_client.registry.query_process",
        "--registry",
        address.text,
        "--method",
        method,
        "--timeout",
        str(max(timeout, 0.0)),
    )
    try:
        done = subprocess.run(
            command,
            input=asked,
            capture_output=True,
            env=child_environment(token),
            start_new_session=True,
            timeout=max(timeout, 0.0) + _HARD_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise errors.Unreachable(f"{address.text} did not answer within {timeout:g} s") from None
    if done.returncode == 0:
        return done.stdout
    told = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
    try:
        problem = json.loads(told[-1])
        kind, message = str(problem["error"]), str(problem["message"])
    except (ValueError, KeyError, TypeError):
        raise errors.FlermError(
            f"the process that asks {address.text} failed: {told[-1]}"
        ) from None
    raised: type[errors.FlermError] = getattr(errors, kind, errors.FlermError)
    raise raised(message)


def _parts(answer: bytes) -> Iterator[bytes]:
    position = 0
    while position < len(answer):
        (length,) = _LENGTH.unpack_from(answer, position)
        position += _LENGTH.size
        yield answer[position : position + length]
        position += length


def _cache_file(address: RegistryAddress, method: str, asked: bytes) -> Path:
    key = hashlib.sha256(f"{address.text}\n{method}\n".encode() + asked).hexdigest()
    return default_folder() / "targets" / f"{key}.answer"


def _keep(cache: Path, address: RegistryAddress, answer: bytes) -> None:
    """Writes the answer behind one line of JSON; a disk that does not take it costs only the fallback."""
    head = {
        "fetched_at": now().isoformat(),
        "registry": address.text,
        "sha256": hashlib.sha256(answer).hexdigest(),
    }
    fresh = cache.with_suffix(f".{os.getpid()}")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh.write_bytes(json.dumps(head).encode() + b"\n" + answer)
        fresh.replace(cache)
    except OSError as error:
        log.warning("the answer cannot be kept in %s: %s", cache.parent, error.strerror)


def _cached(cache: Path) -> tuple[datetime, bytes] | None:
    try:
        first, _, answer = cache.read_bytes().partition(b"\n")
    except OSError:
        return None
    try:
        head = json.loads(first)
        fetched_at, digest = datetime.fromisoformat(head["fetched_at"]), head["sha256"]
    except (ValueError, KeyError, TypeError):
        digest, fetched_at = "", now()
    if hashlib.sha256(answer).hexdigest() != digest:
        log.warning("the cached answer %s is damaged and not used", cache)
        return None
    return fetched_at, answer


def _age(moment: datetime) -> str:
    seconds = max((now() - moment).total_seconds(), 0.0)
    for length, unit in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def main(argv: list[str] | None = None) -> int:
    """The child: a request on standard input, the answer's messages on standard output, an error as JSON on standard error."""
    from flerm_client.registry.connection import Connection

    parser = argparse.ArgumentParser(
        prog="python -m flerm_client.registry.query_process",
        description="Asks a registry one question.",
    )
    parser.add_argument("--registry", required=True)
    parser.add_argument("--method", required=True, choices=sorted(_REQUESTS))
    parser.add_argument("--timeout", type=float, required=True)
    options = parser.parse_args(argv)
    request = _REQUESTS[options.method].FromString(sys.stdin.buffer.read())
    connection = Connection(address_of(options.registry), token_of(), patience=options.timeout)
    end = time.monotonic() + options.timeout
    try:
        if options.method == "GetBest":
            answers = iter([connection.unary(options.method, request, until=end)])
        else:
            answers = connection.stream(options.method, request, until=end)
        parts = [answer.SerializeToString() for answer in answers]
    except errors.FlermError as error:
        sys.stderr.write(json.dumps({"error": type(error).__name__, "message": str(error)}) + "\n")
        return 1
    sys.stdout.buffer.write(b"".join(_LENGTH.pack(len(part)) + part for part in parts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
