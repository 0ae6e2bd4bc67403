"""Which scope each call needs.

The gRPC interceptor and the HTTP middleware both ask here. A method without a rule needs admin.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from flerm_server.auth.principal import Scope

RPCS: Mapping[str, Scope] = {
    "ServerInfo": Scope.READ,
    "ListFamilies": Scope.READ,
    "GetRecording": Scope.READ,
    "ListRecordings": Scope.READ,
    "GetTrajectory": Scope.READ,
    "GetTargets": Scope.READ,
    "GetBest": Scope.READ,
    "RegisterFamily": Scope.WRITE,
    "StartRecording": Scope.WRITE,
    "Append": Scope.WRITE,
    "FinishRecording": Scope.WRITE,
    "ImportRecordings": Scope.WRITE,
    "RenewLease": Scope.WRITE,
    "TagRecording": Scope.WRITE,
    "RenameFamily": Scope.ADMIN,
    "DeleteRecording": Scope.ADMIN,
}

# Open to everybody: probes ask for the health without a token, and the wire contract that
# reflection gives is in the published source.
OPEN_SERVICES = frozenset({"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"})

# Open to everybody: what probes and the login page need.
OPEN_PATHS = ("/healthz", "/readyz", "/login", "/static/")
# These count over the whole registry, so a token that is bound to a family may not read them.
WHOLE_PATHS = ("/metrics",)


@lru_cache(maxsize=128)
def rpc_needs(method: str) -> Scope | None:
    """The scope that `/package.Service/Method` needs; None: open to everybody."""
    service, _, name = method.strip("/").partition("/")
    return None if service in OPEN_SERVICES else RPCS.get(name, Scope.ADMIN)


def path_needs(path: str) -> Scope | None:
    """The scope that an HTTP request for `path` needs; None: open to everybody.

    Nothing that HTTP serves writes, so the scope to read is enough for all paths.
    """
    opened = any(
        path.startswith(each) if each.endswith("/") else path == each for each in OPEN_PATHS
    )
    return None if opened else Scope.READ
