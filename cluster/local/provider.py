"""The "cloud" of a local cluster: Ray's autoscaler asks for machines here, and each is a `ray start` of its own.

What a private site with a fixed set of machines would write for itself. It lives in the autoscaler's process beside the
head, so it ends with the head, and so do the nodes that it launched.
"""

import os
import secrets
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from typing import Any

from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_HEAD,
    STATUS_UP_TO_DATE,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

from cluster.local.processes import kill, launch
from cluster.local.ray_start import Machine, node_command

HEAD_TYPE, NODE_TYPE = "head", "machine"
OF_THE_HEAD = ("RAY_REDIS_ADDRESS", "RAY_external_storage_namespace", "RAY_gcs_storage", "RAY_gcs_storage_path")


@dataclass(frozen=True)
class Autoscaling:
    """What a local cluster may add by itself.

    Pending placement groups, tasks and actors bring nodes, and a node where nothing is held for `idle_seconds` goes.
    """

    machine: Machine = field(default_factory=Machine)  # every one of them
    max_nodes: int = 4
    idle_seconds: float = 6


def autoscaling_config(autoscaling: Autoscaling, head_id: str, address: str, folder: Path) -> dict[str, Any]:
    """What `ray start --head --autoscaling-config` reads, as JSON."""
    machine = autoscaling.machine
    resources = {"CPU": machine.cpus, "GPU": machine.gpus, **machine.resources}
    return {
        "cluster_name": "local",
        "max_workers": autoscaling.max_nodes,
        "upscaling_speed": 100.0,
        "idle_timeout_minutes": autoscaling.idle_seconds / 60,
        "provider": {
            "type": "external",
            "module": f"{__name__}.{LocalProcessNodeProvider.__name__}",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,  # nothing is installed on a machine that is a process
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "address": address,
            "head_id": head_id,
            "folder": str(folder),
            "object_store_mb": machine.object_store_mb,
        },
        "available_node_types": {
            HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            NODE_TYPE: {
                "resources": {name: amount for name, amount in resources.items() if amount},
                "labels": dict(machine.labels),
                "node_config": {},
                "min_workers": 0,
                "max_workers": autoscaling.max_nodes,
            },
        },
        "head_node_type": HEAD_TYPE,
        "auth": {"ssh_user": "nobody"},
        "cluster_synced_files": [],
        "file_mounts": {},
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }


def head_environment(head_id: str) -> dict[str, str]:
    """What makes the head's autoscaler know its own node, and look once a second."""
    return {
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": head_id,
        "RAY_NODE_TYPE_NAME": HEAD_TYPE,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }


class LocalProcessNodeProvider(NodeProvider):
    """Launches and ends nodes, from the autoscaler's threads. A node's id here is its id in Ray, and its address."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str):
        super().__init__(provider_config, cluster_name)
        self._lock = RLock()
        self._head = provider_config["head_id"]
        self._tags: dict[str, dict[str, str]] = {
            self._head: {
                TAG_RAY_NODE_KIND: NODE_KIND_HEAD,
                TAG_RAY_USER_NODE_TYPE: HEAD_TYPE,
                TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE,
            }
        }
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def create_node_with_resources_and_labels(
        self,
        node_config: dict[str, Any],
        tags: dict[str, str],
        count: int,
        resources: dict[str, float],
        labels: dict[str, str],
    ) -> None:
        """Returns at once; a node that doesn't come up is one that has ended."""
        custom = {name: amount for name, amount in resources.items() if name not in ("CPU", "GPU", "memory")}
        custom.pop("object_store_memory", None)
        store_mb = self.provider_config["object_store_mb"]
        machine = Machine(resources.get("CPU", 0), resources.get("GPU", 0), custom, labels, store_mb)
        for _ in range(count):
            node_id = secrets.token_hex(28)
            process = self._launch(node_id, machine, tags[TAG_RAY_USER_NODE_TYPE])
            with self._lock:
                self._tags[node_id] = {**tags, TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE}
                self._processes[node_id] = process

    def _launch(self, node_id: str, machine: Machine, node_type: str) -> subprocess.Popen[bytes]:
        folder = Path(self.provider_config["folder"]) / node_id[:8]
        ours = {name: value for name, value in os.environ.items() if name not in OF_THE_HEAD}
        identity = {
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": node_id,
            "RAY_CLOUD_INSTANCE_ID": node_id,
            "RAY_NODE_TYPE_NAME": node_type,
        }
        command = node_command(folder, self.provider_config["address"], machine)
        process = launch(command, {**ours, **identity}, folder.with_suffix(".log"))
        folder.with_suffix(".pid").write_text(str(process.pid))  # for `LocalCluster.kill_launched`
        return process

    def terminate_node(self, node_id: str) -> None:
        with self._lock:
            process = self._processes.get(node_id)
        if process is not None:
            kill([process])

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        with self._lock:
            return [name for name in self._tags if self.is_running(name) and self._matches(name, tag_filters.items())]

    def _matches(self, node_id: str, wanted: Iterable[tuple[str, str]]) -> bool:
        return all(self._tags[node_id].get(key) == value for key, value in wanted)

    def is_running(self, node_id: str) -> bool:
        with self._lock:
            return node_id == self._head or (node_id in self._processes and self._processes[node_id].poll() is None)

    def is_terminated(self, node_id: str) -> bool:
        return not self.is_running(node_id)

    def node_tags(self, node_id: str) -> dict[str, str]:
        with self._lock:
            return self._tags[node_id]

    def set_node_tags(self, node_id: str, tags: dict[str, str]) -> None:
        with self._lock:
            self._tags[node_id] |= tags

    def internal_ip(self, node_id: str) -> str:
        return node_id

    def external_ip(self, node_id: str) -> str:
        return node_id
