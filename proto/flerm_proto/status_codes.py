"""The conversion of the errors of `flerm_core.errors` to gRPC status codes and back."""

from __future__ import annotations

import grpc

from flerm_core import errors

# Subclasses stand before their base class: an error's code is that of the first class that fits.
_CODES: tuple[tuple[type[errors.FlermError], grpc.StatusCode], ...] = (
    (errors.AlreadyExists, grpc.StatusCode.ALREADY_EXISTS),
    (errors.Ambiguous, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.Unauthenticated, grpc.StatusCode.UNAUTHENTICATED),
    (errors.PermissionDenied, grpc.StatusCode.PERMISSION_DENIED),
    (errors.LimitExceeded, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.Refused, grpc.StatusCode.ABORTED),
    (errors.InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.NotFound, grpc.StatusCode.NOT_FOUND),
    (errors.Unreachable, grpc.StatusCode.UNAVAILABLE),
    (errors.DataLoss, grpc.StatusCode.DATA_LOSS),
)
_ERRORS = {code: error for error, code in _CODES} | {
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.Unreachable,
    grpc.StatusCode.CANCELLED: errors.Unreachable,
    grpc.StatusCode.OUT_OF_RANGE: errors.InvalidInput,
}


def code_of(error: Exception) -> grpc.StatusCode:
    """The status code of `error`; INTERNAL for an exception that is in no class above."""
    return next(
        (code for kind, code in _CODES if isinstance(error, kind)), grpc.StatusCode.INTERNAL
    )


def error_of(code: grpc.StatusCode, message: str) -> errors.FlermError:
    """The error that `code` stands for, with the server's `message`. Unknown: `FlermError`."""
    return _ERRORS.get(code, errors.FlermError)(message)
