"""The certificate of both ports, which is read again when its files change."""

from __future__ import annotations

import ssl
import threading
from pathlib import Path
from typing import Any

import grpc
import structlog

from flerm_core.errors import InvalidInput

log = structlog.get_logger("flerm.tls")


class Certificate:
    """A certificate chain and its key, in PEM files.

    Every handshake checks whether the files have changed. While the new files do not fit together
    (one is renewed, the other not yet), the last good pair stays in use, and the log has a warning.
    """

    def __init__(self, chain: Path, key: Path) -> None:
        """Reads the files. Raises `InvalidInput` unless they are a certificate and its key."""
        self._chain, self._key = chain, key
        self._lock = threading.Lock()
        try:
            self._loaded = self._stamps()
            self._load()
        except (OSError, ssl.SSLError) as error:
            raise InvalidInput(
                f"tls_cert {chain}, tls_key {key}: "
                f"no certificate and its key in PEM ({_reason(error)})"
            ) from error

    def server_credentials(self) -> grpc.ServerCredentials:
        """The credentials of a gRPC server, which follow the files."""

        def renewed() -> grpc.ServerCertificateConfiguration:
            self._reload_if_changed()
            configuration: grpc.ServerCertificateConfiguration = self._configuration
            return configuration

        credentials: grpc.ServerCredentials = grpc.dynamic_ssl_server_credentials(
            self._configuration, renewed
        )
        return credentials

    def context(self) -> ssl.SSLContext:
        """The context of an HTTP server. Each handshake goes on with the present files' context."""

        def swap(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
            self._reload_if_changed()
            connection.context = self._context

        entry = self._new_context()
        entry.sni_callback = swap  # OpenSSL calls it also for clients that send no name
        return entry

    def _reload_if_changed(self) -> None:
        with self._lock:
            try:
                stamps = self._stamps()
                if stamps == self._loaded:
                    return
                self._load()
                self._loaded = stamps
                log.info("certificate renewed", chain=str(self._chain))
            except (OSError, ssl.SSLError) as error:
                log.warning(
                    "certificate not renewed, the old one serves on",
                    chain=str(self._chain),
                    reason=_reason(error),
                )

    def _load(self) -> None:
        context = self._new_context()  # raises where certificate and key do not fit
        pair = (self._key.read_bytes(), self._chain.read_bytes())
        self._configuration: Any = grpc.ssl_server_certificate_configuration([pair])
        self._context = context

    def _new_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        context.load_cert_chain(self._chain, self._key)
        return context

    def _stamps(self) -> tuple[tuple[int, int, int], ...]:
        found = (each.stat() for each in (self._chain, self._key))
        return tuple((each.st_mtime_ns, each.st_size, each.st_ino) for each in found)


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or getattr(error, "strerror", None) or error)
