"""The file for `ray up`, by Ray's own validation, and every command in it by Ray's own parser."""

import copy
import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start

from cluster.local.ray_start import SETTINGS
from cluster.presets import preset

TOKEN = "/run/dreamer4/token/auth_token"
SAID = (
    "RAY_AUTH_MODE",
    "RAY_USAGE_STATS_ENABLED",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV",
    "RAY_gcs_rpc_server_reconnect_timeout_s",
    "RAY_worker_niceness",
    "GRPC_ENABLE_FORK_SUPPORT",
)


@pytest.fixture(scope="module")
def config(deploy: Path) -> dict[str, Any]:
    return yaml.safe_load((deploy / "ray-cluster.yaml").read_text())


def problems(config: dict[str, Any]) -> list[str]:
    """What Ray refuses, and what breaks a rule of ours."""
    found = []
    try:
        validate_config(prepare_config(copy.deepcopy(config)))
        # Ray fills in what is missing before it looks, and never sees a mistyped key of ours in a node's type.
        schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
        jsonschema.validate(config, schema)
    except (AssertionError, ValueError, jsonschema.ValidationError) as error:
        return [str(error).partition("\n")[0]]
    for role in ("head", "worker"):
        for command in config[f"{role}_start_ray_commands"]:
            found += [f"{role}: {problem}" for problem in _command(command, role)]
    if list(config["file_mounts"]) != [TOKEN]:
        found.append("the token is not brought to the machines, or something else is")
    types = config["available_node_types"]
    if types[config["head_node_type"]]["resources"].get("CPU") != 0:
        found.append("the autoscaler thinks that the head has CPUs")
    if "InstanceMarketOptions" in types["pretrain"]["node_config"]:
        found.append("pretraining is on machines that may be taken away")
    for name, machine in types.items():
        if any(not disk["Ebs"].get("Encrypted") for disk in machine["node_config"]["BlockDeviceMappings"]):
            found.append(f"{name}: a disk is not encrypted")
        if machine["node_config"]["MetadataOptions"].get("HttpTokens") != "required":
            found.append(f"{name}: its credentials can be had by a forged request")
    return found


def _command(command: str, role: str):
    words = shlex.split(command)
    said = dict(re.findall(r"\b((?:RAY|GRPC)_\w+)=(\S+)", command))
    if said.get("RAY_AUTH_MODE") != "token" or said.get("RAY_AUTH_TOKEN_PATH") != TOKEN:
        yield f"`{command}` isn't told of the token"
    if "start" not in words:
        return
    options = start.make_context("start", words[words.index("start") + 1 :]).params  # raises on an unknown option
    if wrong := [name for name in SAID if said.get(name) != SETTINGS[name]]:
        yield f"{wrong} are not said"
    if options["head"] != (role == "head"):
        yield "is not what it is"
    if role == "head" and (options["num_cpus"], options["dashboard_host"]) != (0, "127.0.0.1"):
        yield "works, or has an open dashboard"


def test_file_is_valid_and_safe(config):
    assert problems(config) == []


NODE = ("available_node_types", "imagination")


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (("max_workerz",), 3, "max_workerz"),
        ((*NODE, "max_worker"), 3, "max_worker"),
        ((*NODE, "resources", "GPU"), "1", "is not of type 'integer'"),
        ((*NODE, "min_workers"), 100, "smaller than the sum"),
        (("head_node_type",), "boss", "must be one of"),
        (("docker", "container_name"), "", "container & image name"),
        (("worker_start_ray_commands", 1), "ray start --address=$RAY_HEAD_IP:6379", "isn't told of the token"),
        (("head_start_ray_commands", 0), "ray stop", "isn't told of the token"),
        (("file_mounts",), {}, "not brought"),
        (("available_node_types", "head", "resources", "CPU"), 8, "the head has CPUs"),
        (("available_node_types", "pretrain", "node_config", "InstanceMarketOptions"), {}, "taken away"),
        ((*NODE, "node_config", "MetadataOptions"), {}, "forged request"),
        ((*NODE, "node_config", "BlockDeviceMappings"), [{"Ebs": {}}], "not encrypted"),
    ],
)
def test_worse_file_is_found(config, path, value, sentence):
    config = copy.deepcopy(config)
    *way, last = path
    at = config
    for step in way:
        at = at[step]
    at[last] = value
    assert any(sentence in problem for problem in problems(config)), problems(config)


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "open dashboard"),
        ("--num-cpus=0", "--num-cpus=4", "works, or"),
        ("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled", "isn't told of the token"),
        ("RAY_USAGE_STATS_ENABLED=0", "", "are not said"),
    ],
)
def test_worse_command_is_found(config, before, after, sentence):
    config = copy.deepcopy(config)
    commands = config["head_start_ray_commands"]
    assert before in commands[1]
    commands[1] = commands[1].replace(before, after)
    assert any(sentence in problem for problem in problems(config))


def test_mistyped_option_is_found(config):
    with pytest.raises(Exception, match="No such option"):
        list(_command("RAY_AUTH_MODE=token ray start --hed", "head"))


def test_machines_fit_the_paper(config):
    wanted = preset("minecraft").resources
    types = config["available_node_types"]
    assert types["imagination"]["resources"]["GPU"] >= wanted.shards * wanted.worker_gpus
    assert types["pretrain"]["resources"]["GPU"] == 8
    assert types["imagination"]["max_workers"] >= wanted.workers
    assert sum(machine["max_workers"] for machine in types.values()) <= config["max_workers"]
