"""The uploader: the process beside a training job that delivers its spool file.

`flerm_client.upload.reporter` starts it as `python -m flerm_client.upload.worker`, in a session of
its own, one for each attempt of a recording. All gRPC objects live in this process, and it does not
import torch. Its standard input and output are one socket: the parent writes a byte when there is
something new, and the uploader writes one line of JSON when it is done with the parent's file. Its
standard error is a log file beside the spool file. Its environment holds the token.

The uploader runs while its parent runs and its file has no end. After that it has `--grace` seconds
to deliver the rest, and ends. What is left stays in the spool for `flerm sync` or the next run. It
also delivers files in the same folder and for the same registry whose processes have ended.
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
from flerm_client.registry.calls import RegistryCalls
from flerm_client.registry.connection import Connection, backoff
from flerm_client.spool.paths import spool_files
from flerm_client.spool.process_owner import ProcessOwner
from flerm_client.spool.reader import read_origin
from flerm_client.upload.spool_delivery import SpoolDelivery, can_take_over
from flerm_core.errors import FlermError
from flerm_core.records.recording import Ending, now

log = logging.getLogger("flerm.uploader")

GRACE = 60.0  # seconds to go on after the parent's end
_STOP_GRACE = 10.0  # seconds to go on after SIGTERM
_GATHER_SECONDS = 0.05  # rows that arrive within this time are sent in one request
_POLL_SECONDS = 0.2  # without a pidfd, or after the parent has closed the socket


class WakeupPoller:
    """Waits for a byte of the parent, the parent's end, or SIGTERM.

    parent: the pid of the training process.
    stop_requested: whether SIGTERM came.
    """

    def __init__(self, parent: int) -> None:
        self.stop_requested = False
        self._owner = ProcessOwner.of(parent)
        self._gone = os.getppid() != parent
        self._poll = select.poll()
        self._wakeups: int | None = sys.stdin.fileno()
        os.set_blocking(self._wakeups, False)
        self._poll.register(self._wakeups, select.POLLIN)
        self._pidfd = self._open_pidfd(parent)
        self._signals, write_end = os.pipe()
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end)
        signal.signal(signal.SIGTERM, self._on_sigterm)
        self._poll.register(self._signals, select.POLLIN)

    def parent_gone(self) -> bool:
        """Whether the training process has ended."""
        self._gone = self._gone or not self._owner.alive
        return self._gone

    def wait(self, seconds: float) -> bool:
        """Waits until something happens, at most `seconds`; whether the parent sent a byte."""
        if self._wakeups is None or (self._pidfd is None and not self._gone):
            seconds = min(seconds, _POLL_SECONDS)
        woken = False
        for descriptor, _ in self._poll.poll(max(seconds, 0.0) * 1000):
            if descriptor == self._wakeups:
                woken = True
                try:
                    data = os.read(descriptor, 65536)
                except ConnectionError:
                    data = b""
                if not data:  # the parent has closed the socket
                    self._poll.unregister(descriptor)
                    self._wakeups = None
            elif descriptor == self._pidfd:
                self._poll.unregister(descriptor)
                self._gone = True
            else:
                os.read(descriptor, 1024)
        return woken

    def pause(self, seconds: float) -> None:
        """Waits as `wait` does, but ignores the parent's bytes.

        While nobody waits for the socket, a byte wakes no process and costs the training thread
        less.
        """
        if self._wakeups is not None:
            self._poll.unregister(self._wakeups)
        self.wait(seconds)
        if self._wakeups is not None:
            self._poll.register(self._wakeups, select.POLLIN)

    def _open_pidfd(self, parent: int) -> int | None:
        try:
            pidfd = os.pidfd_open(parent)
        except (AttributeError, OSError):
            # Another operating system, an old kernel, or the parent has ended already.
            return None
        self._poll.register(pidfd, select.POLLIN)
        return pidfd

    def _on_sigterm(self, *_: object) -> None:
        self.stop_requested = True


class Uploader:
    """Delivers the parent's file `path`, and then files of processes that have ended.

    calls: the calls to the registry.
    poller: waits for the parent.
    grace: seconds to go on after the parent's end.
    """

    def __init__(
        self, path: Path, calls: RegistryCalls, poller: WakeupPoller, *, grace: float = GRACE
    ) -> None:
        self.own = SpoolDelivery(path, calls)
        self.others: list[SpoolDelivery] = []
        self._calls = calls
        self._poller = poller
        self._grace = grace
        self._deadline: float | None = None
        self._failures = 0
        self._lease_due = 0.0
        self._searched = False
        self._reported = False
        self._stopping = False

    def run(self) -> None:
        """Delivers until nothing is left to do, or until the time is over."""
        while True:
            more, failed = self._deliver()
            if self.own.done:
                self._report()
            if self.own.done and all(other.done for other in self.others):
                return
            self._set_deadline()
            if self._stopping and not more and not failed:
                return
            if self._deadline is not None and time.monotonic() >= self._deadline:
                left = [each.path.name for each in [self.own, *self.others] if not each.done]
                log.warning("left undelivered: %s", ", ".join(left))
                return
            if not more:
                self._wait(backoff(self._failures) if failed else None)

    def _deliver(self) -> tuple[bool, bool]:
        """Sends one batch of every file; whether there is more to send, whether one failed."""
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
                # The next try connects anew: the host name may have another address by now, or
                # the old path may drop packets.
                self._calls.close()
                break
        self._failures = self._failures + 1 if failed else 0
        if self.own.started and not failed:
            self._find_abandoned()
            self._renew_lease()
        return more, failed

    def _find_abandoned(self) -> None:
        """Looks once for files of ended processes in the same folder for the same registry."""
        if self._searched:
            return
        self._searched = True
        registry = self._calls.address.text
        for path in spool_files(self.own.path.parent):
            if path == self.own.path or not can_take_over(path)[0]:
                continue
            origin = read_origin(path)
            if origin is not None and origin.registry == registry:
                log.info("also delivering %s of %s", path.name, origin.owner)
                unfinished = Ending(status="interrupted")
                self.others.append(SpoolDelivery(path, self._calls, unfinished=unfinished))

    def _renew_lease(self) -> None:
        if self.own.done or time.monotonic() < self._lease_due:
            return
        try:
            self._lease_due = time.monotonic() + max(self.own.renew_lease() / 3, 0.5)
        except FlermError as error:  # the next append gets the same error and handles it
            log.warning("the lease was not renewed: %s", error)
            self._lease_due = time.monotonic() + 5.0

    def _set_deadline(self) -> None:
        """Sets the time to end by, once the parent or its file has ended, or SIGTERM came."""
        moment = time.monotonic()
        if self._poller.parent_gone() and self.own.unfinished is None:
            # The file holds the parent's last write. If it has no end now, it never will.
            self.own.unfinished = Ending(status="interrupted", finished_at=now())
            self._deadline = moment + self._grace
        elif self.own.done and self._deadline is None:
            self._deadline = moment + self._grace
        if self._poller.stop_requested:
            self._deadline = min(self._deadline or moment + _STOP_GRACE, moment + _STOP_GRACE)
            self._poller.stop_requested = False
            self._stopping = True

    def _wait(self, pause: float | None) -> None:
        """Waits for the parent.

        pause: seconds to wait after a failure; None without one.
        """
        if pause is None:
            if self._poller.wait(self._lease_due - time.monotonic() if self.own.started else 60.0):
                self._poller.pause(_GATHER_SECONDS)
            return
        # Only the parent's end or SIGTERM shortens this pause. New rows do not: a registry that
        # fails must not get a request for each of them.
        until = min(time.monotonic() + pause, self._deadline or math.inf)
        while (left := until - time.monotonic()) > 0:
            self._poller.wait(left)
            if self._poller.stop_requested or (
                self._poller.parent_gone() and self.own.unfinished is None
            ):
                return

    def _report(self) -> None:
        """Writes the outcome of the parent's file to the parent, once."""
        if self._reported:
            return
        self._reported = True
        progress = self.own.progress
        outcome = {
            "refused": self.own.quarantined is not None,
            "acknowledged": progress.acknowledged,
            "problem": progress.problem,
        }
        try:
            os.write(1, json.dumps(outcome).encode() + b"\n")
        except OSError:  # the parent has ended, or does not wait for the outcome
            log.debug("nobody reads the outcome")


def _lower_priority() -> None:
    """Gives the training process precedence, so that a wakeup does not take its processor."""
    try:
        os.nice(10)
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except (AttributeError, OSError) as error:  # another operating system, or not permitted
        log.debug("the priority is unchanged: %s", error)


def main(argv: list[str] | None = None) -> int:
    """Runs the uploader. Its exit code is 0 whatever it delivered: the spool holds what is left."""
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
    _lower_priority()
    poller = WakeupPoller(options.parent)
    connection = Connection(address_of(options.registry), token_of())
    Uploader(options.file, connection, poller, grace=options.grace).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
