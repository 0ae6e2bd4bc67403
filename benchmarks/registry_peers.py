"""Values per second that MLflow's tracking server and Optuna's gRPC proxy store in SQLite, with
their own clients.

Run it by an interpreter that has both. It prints one JSON object.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

TENSORS = 500


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def mlflow(folder: Path, steps: int = 10) -> dict[str, float]:
    """One client sends `log_batch` with 500 metrics a call and then reads all of them back."""
    import urllib.request

    os.environ["GIT_PYTHON_REFRESH"] = "quiet"
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    port = free_port()
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
    ]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline, pause = time.monotonic() + 120, threading.Event()
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).read()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                pause.wait(0.2)
        client = MlflowClient(f"http://127.0.0.1:{port}")
        run = client.create_run(client.create_experiment("benchmark")).info.run_id
        started = time.perf_counter()
        for step in range(steps):
            client.log_batch(
                run,
                metrics=[Metric(f"layers.{at}.weight", 0.5, step, step) for at in range(TENSORS)],
            )
        written = time.perf_counter() - started
        started = time.perf_counter()
        keys = 50
        found = sum(
            len(client.get_metric_history(run, f"layers.{at}.weight")) for at in range(keys)
        )
        read = time.perf_counter() - started
        return {"mlflow": TENSORS * steps / written, "mlflow_read": found / read}
    finally:
        os.killpg(process.pid, 15)
        process.wait()


SERVE = """
import sys
from optuna.storages import RDBStorage, run_grpc_proxy_server
run_grpc_proxy_server(RDBStorage(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]))
"""


def optuna(folder: Path, values: int = 100) -> dict[str, float]:
    """One client sends intermediate values one by one, the only way that Optuna has."""
    import optuna as library
    from optuna.storages import GrpcStorageProxy, RDBStorage

    url = f"sqlite:///{folder}/optuna.db"
    RDBStorage(url)
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, url, str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        storage = GrpcStorageProxy(host="127.0.0.1", port=port)
        storage.wait_server_ready(timeout=60)
        trial = library.create_study(storage=storage).ask()
        started = time.perf_counter()
        for step in range(values):
            trial.report(0.5, step)
        return {"optuna": values / (time.perf_counter() - started)}
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """Measures both."""
    with tempfile.TemporaryDirectory() as name:
        print(
            json.dumps(
                {
                    key: round(value)
                    for key, value in (mlflow(Path(name)) | optuna(Path(name))).items()
                }
            )
        )


if __name__ == "__main__":
    main()
