"""A Ray cluster on this machine: two nodes, each of them as large as one run."""

import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager

import psutil

from short_runs import free_port

# A lost node is noticed within seconds; the agents of a node start slowly where many tests run.
NOTICED = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 5,
    "health_check_timeout_ms": 2000,
}
ENV = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_worker_niceness": "0",  # else 15: nothing is left for a run where many tests run
    "OMP_NUM_THREADS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else ray warns of it
}

AGENTS = ("ray.dashboard.agent", "ray._private.runtime_env.agent.main", "flagtrl.runs.node")


@contextmanager
def cluster(monkeypatch):
    """Two nodes, the first of them the head; stopped at the end, with all that they started."""
    from ray.cluster_utils import Cluster

    for name, value in ENV.items():
        monkeypatch.setenv(name, value)
    # Else every process of Ray's would compile all of its libraries anew; a node whose agents begin
    # later than after 15 s gives up.
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    subprocess.run([sys.executable, "-c", f"import {', '.join(AGENTS)}"], check=True)
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # a socket's path is at most 107 long
    monkeypatch.setenv("TMPDIR", folder)  # what a killed worker leaves is removed, too
    os.mkdir(where := f"{folder}/ray")
    before = set(psutil.Process().children(recursive=True))
    head = {**node(), "include_dashboard": False, "temp_dir": where, "_system_config": NOTICED}
    made = Cluster(initialize_head=True, head_node_args=head)
    try:
        made.add_node(**node())
        yield made
    finally:
        started = set(psutil.Process().children(recursive=True)) - before
        made.shutdown()
        for process in started & set(psutil.Process().children(recursive=True)):
            process.kill()
        psutil.wait_procs(started, timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


def node():
    """With ports of its own for its agents: ray waits 15 s for those that it has to be told."""
    names = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port")
    ports = {name: free_port() for name in (*names, "runtime_env_agent_port")}
    return {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_log_monitor": False, **ports}
