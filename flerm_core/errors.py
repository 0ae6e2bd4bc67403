"""Every error that FLeRM raises on purpose.

One hierarchy, mapped to gRPC status codes in `flerm_proto.status_codes` and to HTTP problems in the server's REST view.
A message is one sentence that names the field, the value and what is allowed.
"""

from __future__ import annotations

from collections.abc import Iterable


class FlermError(Exception):
    """Base of all. `exit_code` is what the `flerm` command ends with."""

    exit_code = 1


class InvalidInput(FlermError, ValueError):
    """A field is wrong in itself: its type, range, length or spelling."""

    exit_code = 2


class NotFound(FlermError, LookupError):
    """A family, recording, learning rate or parameter that is not there. The message says what is."""

    exit_code = 3


class Unreachable(FlermError, ConnectionError):
    """The registry did not answer in time, or cannot at the moment. Worth another try."""

    exit_code = 4


class Refused(FlermError):
    """Well formed, but the registry's state or rules forbid it. Trying again changes nothing."""

    exit_code = 5


class AlreadyExists(Refused):
    """The same key was stored before with other content."""


class Ambiguous(Refused):
    """Several answers would fit (optimisers, estimators, ...). The message says how to choose."""


class Unauthenticated(Refused):
    """No token, or one that is unknown, expired or revoked."""


class PermissionDenied(Refused):
    """The token's scope or family prefix does not cover the call."""


class LimitExceeded(Refused):
    """A limit of the registry (sizes, rates, quotas) was reached. The message names it."""


class DataLoss(FlermError):
    """Stored or spooled bytes are damaged. Names the place."""


class MeasurementError(FlermError):
    """An FSLR could not be measured. Raised on every rank alike."""


class EstimatorNotApplicable(MeasurementError):
    """An estimator cannot measure this model, whatever the batch. The message says why."""


class Unsupported(FlermError, TypeError):
    """A model wrapper, optimiser or module that FLeRM knows it cannot measure rightly. Says what to do instead."""

    exit_code = 2


def join_names(items: Iterable[object], most: int = 20) -> str:
    """Items as a phrase, at most `most` of them spelled out."""
    found = [str(item) for item in items]
    rest = len(found) - most
    return ", ".join(found[:most]) + (f" and {rest} more" if rest > 0 else "") if found else "none"
