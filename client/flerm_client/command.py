"""The program `flerm`, which says what to install where `flerm` is installed without any extra."""

from __future__ import annotations

import sys


def main() -> int:
    """Runs the command of this process and returns its exit code (`flerm_client.cli`)."""
    from flerm_client._extras import missing_words

    try:
        from flerm_client.cli import main as run
    except ModuleNotFoundError as missing:
        sys.stderr.write(f"flerm: {missing_words('the command line', missing, 'client')}\n")
        return 1
    return run()
