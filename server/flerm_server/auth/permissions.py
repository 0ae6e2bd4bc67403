"""What each call needs. gRPC's interceptor and HTTP's middleware both ask here; what has no rule needs admin."""

from __future__ import annotations

from collections.abc import Mapping

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
    "RenewLease": Scope.WRITE,
    "TagRecording": Scope.WRITE,
    "RenameFamily": Scope.ADMIN,
    "DeleteRecording": Scope.ADMIN,
}

# Says nothing that is not in the source: probes ask it without a token, and so do tools that look for the contract.
OPEN_SERVICES = frozenset({"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"})

# What probes and the login page need.
OPEN_PATHS = ("/healthz", "/readyz", "/login", "/static/")
# Counts of the whole registry: not for a token that is bound to a family.
WHOLE_PATHS = ("/metrics",)


def rpc_needs(method: str) -> Scope | None:
    """What `/package.Service/Method` needs; None for what is open to everybody."""
    service, _, name = method.strip("/").partition("/")
    return None if service in OPEN_SERVICES else RPCS.get(name, Scope.ADMIN)


def path_needs(path: str) -> Scope | None:
    """What a request for `path` needs; None for what is open. Nothing that HTTP serves writes, so reading is enough."""
    opened = any(
        path.startswith(each) if each.endswith("/") else path == each for each in OPEN_PATHS
    )
    return None if opened else Scope.READ
