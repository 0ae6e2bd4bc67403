"""The proxy's configuration, in a real nginx before two real servers: TLS, gRPC, login, events."""

from __future__ import annotations

import os
import re
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from waiting import until

from flerm_server.auth.sql_tokens import SqlTokenStore
from flerm_server.store.sql.store import open_store
from tests.conftest import PostgresCluster, free_port, launch_registry
from tests.server.conftest import migrate
from tests.server.samples import NAMES

DEPLOY = Path(__file__).parents[2] / "deploy"
pytestmark = pytest.mark.slow

JOB = """
import sys, numpy as np
from flerm_client import RegistryClient
with RegistryClient(sys.argv[1]) as client:
    recording = client.start_recording("team/resmlp", 1e-3, {names!r}, [(1,)] * {count})
    for step in range(1, 41):
        client.append(recording, [step], np.full((1, {count}), step, np.float32))
    assert len(client.trajectory(recording)) == 40
    client.finish(recording, final_loss=0.5)
    print(recording)
"""


@dataclass
class Proxied:
    """The addresses that nginx gives, the authority to trust, tokens to write and to read."""

    grpc: str
    https: str
    ca: Path
    writer: str
    reader: str


@pytest.fixture
def proxied(postgres: PostgresCluster, tmp_path: Path) -> Iterator[Proxied]:
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        pytest.fail(
            "nginx is not installed: this test needs it (Debian: apt-get install nginx-light)"
        )
    tls = tmp_path / "tls"
    subprocess.run(
        ["bash", DEPLOY / "tls" / "private-ca.sh", tls, "localhost", "127.0.0.1"],
        check=True,
        capture_output=True,
    )
    db = migrate(postgres.new_database())
    store = open_store(db)
    writer, reader = (
        SqlTokenStore(store.engine).create(scope, scope)[1].text for scope in ("write", "read")
    )
    store.close()
    servers = [
        launch_registry(db, tmp_path / f"{at}.json", options=("--tls-terminated-upstream",))
        for at in range(2)
    ]
    ports = {"50051 ssl": free_port(), "443 ssl": free_port()}
    text = (DEPLOY / "container" / "nginx.conf").read_text().replace("/etc/nginx/tls", str(tls))
    text = text.replace("access_log /dev/stdout", f"access_log {tmp_path}/access.log")
    for at, each in enumerate(servers, 1):
        text = text.replace(f"registry-{at}:50051", each.grpc).replace(
            f"registry-{at}:8080", each.http.removeprefix("http://")
        )
    for port, free in ports.items():
        text = text.replace(f"listen {port}", f"listen 127.0.0.1:{free} ssl")
    for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"):
        text = text.replace("http {", f"http {{\n  {name}_temp_path {tmp_path}/{name};", 1)
    (tmp_path / "nginx.conf").write_text(text)
    settings = (
        f"daemon off; pid {tmp_path}/nginx.pid; user {'root' if os.getuid() == 0 else 'nobody'};"
    )
    command = [nginx, "-c", f"{tmp_path}/nginx.conf", "-e", f"{tmp_path}/error.log", "-g", settings]
    with subprocess.Popen(command) as proxy:
        try:
            until((tmp_path / "nginx.pid").exists, "nginx did not start")
            grpc, https = ports.values()
            yield Proxied(
                f"grpcs://localhost:{grpc}",
                f"https://localhost:{https}",
                tls / "ca.pem",
                writer,
                reader,
            )
        finally:
            proxy.terminate()
    for each in servers:
        assert each.stop() == 0, "".join(each.output)


def test_jobs_and_pages_through_the_proxy(proxied: Proxied):
    environment = os.environ | {
        "FLERM_TOKEN": proxied.writer,
        "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(proxied.ca),
    }
    job = [sys.executable, "-c", JOB.format(names=list(NAMES), count=len(NAMES)), proxied.grpc]
    done = subprocess.run(job, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    recording = done.stdout.strip()

    context = ssl.create_default_context(cafile=str(proxied.ca))
    with httpx.Client(
        base_url=proxied.https, verify=context, headers={"Accept": "text/html"}, timeout=20
    ) as browser:
        sent_to = browser.get(f"/recordings/{recording}").headers["location"]
        assert sent_to.startswith("/login?next=%2Frecordings%2F")
        entered = browser.post(
            "/login", data={"token": proxied.reader, "next": "/"}, headers={"Origin": proxied.https}
        )
        assert (entered.status_code, "Secure" in entered.headers["set-cookie"]) == (303, True)
        page = browser.get(f"/recordings/{recording}")
        assert (page.status_code, re.search(r"flerm_session", page.text)) == (200, None)
        events = browser.get(f"/api/v1/recordings/{recording}/events")
        assert "event: end" in events.text
        table = browser.get(
            f"/api/v1/recordings/{recording}/trajectory?format=json",
            headers={"Accept": "application/json"},
        ).json()
        assert [each["step"] for each in table["rows"]] == list(np.arange(1, 41))
        assert (
            browser.post("/logout", headers={"Origin": "https://evil.example"}).status_code == 403
        )
        assert browser.post("/logout", headers={"Origin": proxied.https}).status_code == 303
        assert browser.get(f"/recordings/{recording}").status_code == 303
