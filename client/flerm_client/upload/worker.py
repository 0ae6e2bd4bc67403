"""The process beside a training job that brings its spool file to the registry: `python -m flerm_client.upload.worker`.

Started by `flerm_client.upload.reporter` in a session of its own, one per recording and attempt. It owns every gRPC object and
brings no torch. Its standard input and output are one socket: the parent writes a byte when there is something new, the
uploader one line of JSON when the parent's file is dealt with. Its standard error is a log file beside the spool. The token
comes by environment.

It lives while its parent lives and its file has no end. Then it has `--grace` seconds to deliver what it can and leaves; what
is left stays in the spool for `flerm sync` or the next run. It takes along what dead processes left in the same folder for
the same registry.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import select
import signal
import sys
import time
from pathlib import Path

from flerm_client.registry.address import address_of, token_of
from flerm_client.registry.connection import Connection, backoff
from flerm_client.spool.paths import spool_files
from flerm_client.spool.process_owner import ProcessOwner
from flerm_client.upload.spool_delivery import SpoolDelivery, can_take_over, origin_at
from flerm_core.errors import FlermError

log = logging.getLogger("flerm.uploader")

GRACE = 60.0
_STOP_GRACE = 10.0
_GATHER = 0.05
_POLL = 0.2  # where the system has no pidfd, or the parent has closed the pipe


class WakeupPoller:
    """What the uploader waits for: the parent's byte, the parent's death, a SIGTERM."""

    def __init__(self, parent: int) -> None:
        self.stopped = False
        self._owner = ProcessOwner.of(parent)
        self._gone = os.getppid() != parent
        self._poll = select.poll()
        self._bell: int | None = sys.stdin.fileno()
        os.set_blocking(self._bell, False)
        self._poll.register(self._bell, select.POLLIN)
        self._pidfd = self._watch(parent)
        self._signals, write_end = os.pipe()
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end)
        signal.signal(signal.SIGTERM, self._stop)
        self._poll.register(self._signals, select.POLLIN)

    def _watch(self, parent: int) -> int | None:
        try:
            pidfd = os.pidfd_open(parent)
        except (
            AttributeError,
            OSError,
        ):  # another system, an old kernel, or the parent is gone already
            return None
        self._poll.register(pidfd, select.POLLIN)
        return pidfd

    def _stop(self, *_: object) -> None:
        self.stopped = True

    def parent_gone(self) -> bool:
        """Whether the training process has ended."""
        self._gone = self._gone or not self._owner.alive
        return self._gone

    def rest(self, seconds: float) -> None:
        """The same, deaf to the bell. While nobody waits for it, ringing costs the training thread no waking of a process."""
        if self._bell is not None:
            self._poll.unregister(self._bell)
        self.wait(seconds)
        if self._bell is not None:
            self._poll.register(self._bell, select.POLLIN)

    def wait(self, seconds: float) -> bool:
        """Until something happens, `seconds` at most; whether the parent rang."""
        if self._bell is None or (self._pidfd is None and not self._gone):
            seconds = min(seconds, _POLL)
        rang = False
        for descriptor, _ in self._poll.poll(max(seconds, 0.0) * 1000):
            if descriptor == self._bell:
                rang = True
                try:
                    data = os.read(descriptor, 65536)
                except ConnectionError:
                    data = b""
                if not data:  # closed; nobody rings any more
                    self._poll.unregister(descriptor)
                    self._bell = None
            elif descriptor == self._pidfd:
                self._poll.unregister(descriptor)
                self._gone = True
            else:
                os.read(descriptor, 1024)
        return rang


class Uploader:
    """One run of the loop: the parent's file first, then files that dead processes left."""

    def __init__(
        self, path: Path, connection: Connection, doorbell: WakeupPoller, *, grace: float = GRACE
    ) -> None:
        self.own = SpoolDelivery(path, connection)
        self.others: list[SpoolDelivery] = []
        self._connection = connection
        self._doorbell = doorbell
        self._grace = grace
        self._deadline: float | None = None
        self._failures = 0
        self._lease = 0.0
        self._looked = False
        self._reported = False
        self._stopping = False

    def run(self) -> None:
        """Until there is nothing more to do, or no more time."""
        while True:
            more, failed = self._round()
            if self.own.done:
                self._report()
            if self.own.done and all(other.done for other in self.others):
                return
            self._look_at_parent()
            if self._stopping and not more and not failed:
                return
            if self._deadline is not None and time.monotonic() >= self._deadline:
                log.warning(
                    "left undelivered: %s",
                    ", ".join(d.path.name for d in [self.own, *self.others] if not d.done),
                )
                return
            if not more:
                self._wait(backoff(self._failures) if failed else None)

    def _round(self) -> tuple[bool, bool]:
        """One batch of every file: whether there is more at hand, whether something failed."""
        more = failed = False
        for delivery in [self.own, *self.others]:
            if delivery.done:
                continue
            try:
                more = delivery.advance() or more
            except FlermError as error:
                failed = True
                if self._failures in (0, 1, 10) or self._failures % 100 == 0:
                    log.warning(
                        "%s: %s (attempt %d)", delivery.path.name, error, self._failures + 1
                    )
                # Not the old connection again: the name may mean another address by now, or the path swallows packets.
                self._connection.close()
                break
        self._failures = self._failures + 1 if failed else 0
        if self.own.started and not failed:
            self._look_for_others()
            self._renew()
        return more, failed

    def _look_for_others(self) -> None:
        if self._looked:
            return
        self._looked = True
        registry = self._connection.address.text
        for path in spool_files(self.own.path.parent):
            if path == self.own.path or not can_take_over(path)[0]:
                continue
            origin = origin_at(path)
            if origin is not None and origin.registry == registry:
                log.info("taking along %s of %s", path.name, origin.owner)
                self.others.append(SpoolDelivery(path, self._connection, unfinished="interrupted"))

    def _renew(self) -> None:
        if self.own.done or time.monotonic() < self._lease:
            return
        try:
            self._lease = time.monotonic() + max(self.own.renew_lease() / 3, 0.5)
        except FlermError as error:  # the next append tells the same and handles it
            log.warning("the lease was not renewed: %s", error)
            self._lease = time.monotonic() + 5.0

    def _look_at_parent(self) -> None:
        now = time.monotonic()
        if self._doorbell.parent_gone() and self.own.unfinished is None:
            # Its last writes are in the file; what has no end now never will.
            self.own.unfinished = "interrupted"
            self._deadline = now + self._grace
        elif self.own.done and self._deadline is None:
            self._deadline = now + self._grace
        if self._doorbell.stopped:
            self._deadline = min(self._deadline or now + _STOP_GRACE, now + _STOP_GRACE)
            self._doorbell.stopped = False
            self._stopping = True

    def _wait(self, pause: float | None) -> None:
        if pause is None:
            if self._doorbell.wait(self._lease - time.monotonic() if self.own.started else 60.0):
                self._doorbell.rest(_GATHER)  # what comes meanwhile goes in the same message
            return
        # News do not shorten a pause after a failure: the registry is not to be hammered. Only the end does.
        until = min(time.monotonic() + pause, self._deadline or math.inf)
        while (left := until - time.monotonic()) > 0:
            self._doorbell.wait(left)
            if self._doorbell.stopped or (
                self._doorbell.parent_gone() and self.own.unfinished is None
            ):
                return

    def _report(self) -> None:
        if self._reported:
            return
        self._reported = True
        progress = self.own.progress
        line = {
            "refused": self.own.quarantined is not None,
            "acknowledged": progress.acknowledged,
            "problem": progress.problem,
        }
        try:
            os.write(1, json.dumps(line).encode() + b"\n")
        except OSError:  # the parent is gone, or does not wait
            log.debug("nobody reads the outcome")


def _step_back() -> None:
    """Lets the training process go first: waking us must not take its processor from it."""
    try:
        os.nice(10)
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except (AttributeError, OSError) as error:  # another system, or not allowed: only less polite
        log.debug("priority stays as it is: %s", error)


def main(argv: list[str] | None = None) -> int:
    """Runs the uploader; its exit code is 0 however far it came: the spool says what is left."""
    parser = argparse.ArgumentParser(
        prog="python -m flerm_client.upload.worker", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--file", type=Path, required=True, help="the parent's spool file")
    parser.add_argument("--registry", required=True, help="grpc://host:port or grpcs://host:port")
    parser.add_argument(
        "--parent", type=int, required=True, help="process id of the training process"
    )
    parser.add_argument(
        "--grace", type=float, default=GRACE, help="seconds to go on after the parent's end"
    )
    options = parser.parse_args(argv)
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    _step_back()
    doorbell = WakeupPoller(options.parent)
    connection = Connection(address_of(options.registry), token_of())
    Uploader(options.file, connection, doorbell, grace=options.grace).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
