"""Child processes that run a module of the client."""

from __future__ import annotations

import subprocess

from flerm_client.registry.subprocess_env import child_command, child_environment


def test_a_child_finds_our_packages_and_not_what_lies_in_the_working_directory(tmp_path):
    (tmp_path / "json.py").write_text("raise SystemExit('shadowed')")
    command = child_command("flerm_client.registry.query_process", "--help")
    done = subprocess.run(
        command,
        env=child_environment("secret"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "secret" not in " ".join(command)
