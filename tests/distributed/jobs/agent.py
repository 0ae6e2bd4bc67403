"""torchrun's agent, whose ranks are forked from this process instead of started anew.

`agent.py RANKS RESTARTS PROGRAM ARGUMENTS...`
"""

from __future__ import annotations

import atexit
import runpy
import sys
import threading

from torch.distributed.launcher.api import LaunchConfig, elastic_launch


def run(script: str, *arguments: str) -> None:
    """What a rank does: it runs the script, and ends as an interpreter does."""
    sys.argv = [script, *arguments]
    if script.startswith("-m "):
        kept = runpy.run_module(script[3:], run_name="__main__", alter_sys=True)
    else:
        kept = runpy.run_path(script, run_name="__main__")
    threading._shutdown()
    atexit._run_exitfuncs()
    del kept


if __name__ == "__main__":
    ranks, restarts, *command = sys.argv[1:]
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=int(ranks),
        run_id="test",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=int(restarts),
        monitor_interval=0.1,
        start_method="fork",
    )
    elastic_launch(config, run)(*command)
