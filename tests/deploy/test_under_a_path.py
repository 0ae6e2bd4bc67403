"""The pages and REST under a path of a real nginx, which passes the path on or takes it off."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
from waiting import until

from tests.conftest import StartRegistry, free_port

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
CONFIGURATION = """
daemon off; pid {tmp}/nginx.pid; events {{}}
http {{
  access_log off; client_body_temp_path {tmp}/body; proxy_temp_path {tmp}/proxy;
  fastcgi_temp_path {tmp}/f; uwsgi_temp_path {tmp}/u; scgi_temp_path {tmp}/s;
  server {{
    listen 127.0.0.1:{port};
    location /flerm/ {{ proxy_pass {target}{slash}; proxy_set_header Host $http_host; }}
  }}
}}
"""


@pytest.mark.slow
@pytest.mark.skipif(NGINX is None, reason="nginx is not installed (apt-get install nginx-light)")
@pytest.mark.parametrize("slash", ["", "/"], ids=["passed on", "taken off"])
def test_pages_links_and_data_work(start_registry: StartRegistry, tmp_path: Path, slash: str):
    registry = start_registry(options=("--root-path", "/flerm"))
    port = free_port()
    configuration = tmp_path / "nginx.conf"
    configuration.write_text(
        CONFIGURATION.format(tmp=tmp_path, port=port, target=registry.http, slash=slash)
    )
    user = "user root;" if os.geteuid() == 0 else ""
    command = [str(NGINX), "-c", str(configuration), "-e", f"{tmp_path}/error.log"]
    with subprocess.Popen([*command, *(["-g", user] if user else [])]) as proxy:
        try:
            until((tmp_path / "nginx.pid").exists, "nginx did not start")
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as browser:
                page = browser.get("/flerm/", headers={"Accept": "text/html"})
                assert page.status_code == 200
                links = set(page.text.split('href="')[1:]) | set(page.text.split('src="')[1:])
                paths = {each.partition('"')[0].partition("#")[0] for each in links}
                paths = {each for each in paths if each.startswith("/")}
                assert len(paths) > 4 and all(each.startswith("/flerm/") for each in paths)
                for path in paths:
                    assert browser.get(path.replace("&amp;", "&")).status_code == 200, path
                slashed = browser.get("/flerm/match/")
                assert slashed.headers["location"].endswith("/flerm/match")
        finally:
            proxy.terminate()
