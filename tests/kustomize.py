"""As much of kustomize as our overlays use, so that tests need no kubectl."""

import copy
import json
from pathlib import Path
from typing import Any

import yaml

KNOWN = {"apiVersion", "kind", "namespace", "resources", "images", "patches"}
CLUSTER_WIDE = {"Namespace"}

Resource = dict[str, Any]


def documents(path: Path) -> list[Resource]:
    """Without shared parts: YAML's anchors make one object of several, and a patch would change them all."""
    return [json.loads(json.dumps(found)) for found in yaml.load_all(path.read_text(), Strict) if found is not None]


class Strict(yaml.SafeLoader):
    """Refuses a key that is written twice, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.YAMLError(f"{sorted(twice)} are written twice in {node.start_mark}")
        return super().construct_mapping(node, deep)


def build(folder: Path) -> list[Resource]:
    """What `kubectl kustomize FOLDER` gives.

    Raises:
        ValueError: the kustomization asks for something that isn't done here.
    """
    (kustomization,) = documents(folder / "kustomization.yaml")
    if unknown := set(kustomization) - KNOWN:
        raise ValueError(f"'{folder}' uses {sorted(unknown)}")
    resources: list[Resource] = []
    for name in kustomization["resources"]:
        path = folder / name
        resources += build(path) if path.is_dir() else documents(path)
    for resource in resources:
        if "namespace" in kustomization and resource["kind"] not in CLUSTER_WIDE:
            resource["metadata"]["namespace"] = kustomization["namespace"]
    for patch in kustomization.get("patches", []):
        (operations,) = documents(folder / patch["path"])
        targets = [resource for resource in resources if matches(resource, patch["target"])]
        if not targets:
            raise ValueError(f"nothing is a {patch['target']}")
        for resource in targets:
            for operation in operations:
                apply(resource, operation)
    for image in kustomization.get("images", []):
        for resource in resources:
            rename(resource, image)
    return resources


def matches(resource: Resource, target: Resource) -> bool:
    return resource["kind"] == target["kind"] and resource["metadata"]["name"] == target["name"]


def apply(resource: Resource, operation: Resource) -> None:
    """One operation of RFC 6902.

    Raises:
        ValueError: there is nothing to replace or to remove there, or no place to add to.
    """
    *way, last = operation["path"].strip("/").split("/")
    at: Any = resource
    try:
        for step in way:
            at = at[int(step) if isinstance(at, list) else step]
        if isinstance(at, list):
            last = len(at) if last == "-" else int(last)
        if operation["op"] in ("replace", "remove"):
            at[last]  # is there
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"there is no {operation['path']} in {resource['kind']}") from error
    if operation["op"] == "remove":
        del at[last]
    elif operation["op"] == "add" and isinstance(at, list):
        at.insert(last, copy.deepcopy(operation["value"]))
    else:
        at[last] = copy.deepcopy(operation["value"])


def rename(part: Any, image: dict[str, str]) -> None:
    """Gives every image of that name another name and version."""
    children = part.values() if isinstance(part, dict) else part if isinstance(part, list) else []
    for child in children:
        rename(child, image)
    if isinstance(part, dict) and isinstance(part.get("image"), str) and part["image"].split(":")[0] == image["name"]:
        part["image"] = f"{image['newName']}:{image['newTag']}"
