"""What importing the client brings with it, and how long it takes."""

from __future__ import annotations

import subprocess
import sys


def test_importing_the_package_is_fast_and_brings_neither_torch_nor_grpc_nor_numpy():
    code = (
        "import sys, time; begin = time.process_time(); import flerm_client; "
        "taken = time.process_time() - begin; "
        "print(taken < 0.05, sorted({'torch', 'grpc', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.strip() == "True []"


def test_the_reporter_brings_neither_torch_nor_grpc():
    code = (
        "import sys, flerm_client.upload.reporter, flerm_client.registry.query_process; "
        "print(sorted({'torch', 'grpc'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.strip() == "[]"
