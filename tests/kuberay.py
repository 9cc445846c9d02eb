"""What a set of Kubernetes resources of ours must be: valid by schema, and by the rules of docs/security.md.

Core kinds and all pod templates are checked against Kubernetes's own schemas (kubernetes-validate has them). Those of
KubeRay are not ours to copy: `SPECS` names the fields that we use, and their types, written from its documentation.
"""

import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import kubernetes_validate
from kubernetes_validate import ValidationError
from kustomize import Resource

KUBERNETES = "1.33"
TOKEN, REDIS = "dreamer4-token", "dreamer4-redis"
WANTED = {  # of every process of a Ray (cluster/local/ray_start.py)
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN_PATH": "/run/dreamer4/token/auth_token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "120",
}


def record(required: str, optional: str = "", **fields: Any) -> dict[str, Any]:
    """A JSON schema of an object with these fields and no other."""
    names = [*required.split(), *optional.split()]
    properties = {name: fields.get(name, {}) for name in names}
    return {"type": "object", "properties": properties, "required": required.split(), "additionalProperties": False}


TEXT, COUNT, FLAG, TEXTS = (
    {"type": "string"},
    {"type": "integer", "minimum": 0},
    {"type": "boolean"},
    {
        "type": "object",
        "additionalProperties": {"type": "string"},
    },
)
CREDENTIAL = record("", "value valueFrom", value=TEXT, valueFrom={"type": "object"})
GROUP = record(
    "groupName replicas minReplicas maxReplicas rayStartParams template",
    "idleTimeoutSeconds numOfHosts",
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    numOfHosts=COUNT,
    idleTimeoutSeconds=COUNT,
    rayStartParams=TEXTS,
    template={"type": "object"},
)
SPECS = {
    "RayCluster": record(
        "rayVersion authOptions headGroupSpec workerGroupSpecs",
        "gcsFaultToleranceOptions enableInTreeAutoscaling autoscalerOptions",
        rayVersion=TEXT,
        authOptions=record("mode", "secretName", mode={"enum": ["token", "disabled"]}, secretName=TEXT),
        gcsFaultToleranceOptions=record(
            "redisAddress",
            "redisUsername redisPassword externalStorageNamespace",
            redisAddress=TEXT,
            redisUsername=CREDENTIAL,
            redisPassword=CREDENTIAL,
            externalStorageNamespace=TEXT,
        ),
        enableInTreeAutoscaling=FLAG,
        autoscalerOptions=record(
            "",
            "version idleTimeoutSeconds upscalingMode image imagePullPolicy securityContext resources env envFrom "
            "volumeMounts",
            version={"enum": ["v1", "v2"]},
            idleTimeoutSeconds=COUNT,
            upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
            env={"type": "array"},
        ),
        headGroupSpec=record("rayStartParams template", "", rayStartParams=TEXTS, template={"type": "object"}),
        workerGroupSpecs={"type": "array", "items": GROUP, "minItems": 1},
    ),
    "RayJob": record(
        "entrypoint clusterSelector",
        "runtimeEnvYAML submissionMode shutdownAfterJobFinishes submitterConfig submitterPodTemplate metadata",
        entrypoint=TEXT,
        clusterSelector=TEXTS,
        runtimeEnvYAML=TEXT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        shutdownAfterJobFinishes=FLAG,
        submitterConfig=record("", "backoffLimit", backoffLimit=COUNT),
        submitterPodTemplate={"type": "object"},
    ),
}


def invalid(resources: list[Resource]) -> Iterator[str]:
    """What doesn't have the form that Kubernetes and KubeRay want."""
    for resource in resources:
        kind = resource["kind"]
        try:
            if kind in SPECS:
                jsonschema.validate(resource["spec"], SPECS[kind])
                for name, template in templates(resource):
                    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": template["spec"]}
                    kubernetes_validate.validate(pod, KUBERNETES, strict=True)
                    yield from (f"{name}: {key}" for key in set(template) - {"metadata", "spec"})
            else:
                kubernetes_validate.validate(resource, KUBERNETES, strict=True)
        except (ValidationError, jsonschema.ValidationError) as error:
            yield f"{kind} '{resource['metadata'].get('name')}': {error.message}"


def templates(resource: Resource) -> Iterator[tuple[str, Resource]]:
    """The pods that a resource brings about, with names for people."""
    spec, kind = resource.get("spec", {}), resource["kind"]
    if kind == "RayCluster":
        yield "head", spec["headGroupSpec"]["template"]
        for group in spec["workerGroupSpecs"]:
            yield group["groupName"], group["template"]
    elif kind == "RayJob":
        yield "submitter", spec["submitterPodTemplate"]
    elif "template" in spec:
        yield resource["metadata"]["name"], spec["template"]


def unsafe(resources: list[Resource]) -> Iterator[str]:
    """What breaks a rule of ours."""
    claims = {resource["metadata"]["name"] for resource in resources if resource["kind"] == "PersistentVolumeClaim"}
    for resource in resources:
        for name, template in templates(resource):
            for problem in _pod(template["spec"], claims | ({"runs"} if resource["kind"] == "RayJob" else set())):
                yield f"{name}: {problem}"
        if resource["kind"] == "RayCluster":
            yield from _cluster(resource["spec"])
        if resource["kind"] == "Service" and resource["spec"].get("type", "ClusterIP") != "ClusterIP":
            yield f"service '{resource['metadata']['name']}' is open to the outside"
        if resource["kind"] in ("Ingress", "Secret"):
            yield f"there is a {resource['kind']}"
        yield from _plain_secrets(resource)


def _pod(pod: Resource, claims: set[str]) -> Iterator[str]:
    context = pod.get("securityContext", {})
    if not context.get("runAsNonRoot") or not context.get("runAsUser"):
        yield "may run as root"
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "has no seccomp profile"
    if any(pod.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")):
        yield "is not separated from its host"
    volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
    for volume in volumes.values():
        claim = volume.get("persistentVolumeClaim", {}).get("claimName")
        secret = volume.get("secret", {})
        if "hostPath" in volume:
            yield "sees the disk of its host"
        if claim and claim not in claims:
            yield f"asks for the volume '{claim}', which nobody claims"
        if secret and (secret["secretName"] not in (TOKEN, REDIS) or secret.get("defaultMode", 0o644) & 0o007):
            yield f"everybody in the pod reads the secret '{secret['secretName']}', or it isn't ours"
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        for problem in _container(container, volumes, container in pod["containers"]):
            yield f"{container['name']} {problem}"


def _container(container: Resource, volumes: Resource, lasting: bool) -> Iterator[str]:
    context, resources = container.get("securityContext", {}), container.get("resources", {})
    if context.get("allowPrivilegeEscalation") is not False or context.get("capabilities", {}).get("drop") != ["ALL"]:
        yield "keeps privileges"
    if context.get("privileged"):
        yield "is privileged"
    if not resources.get("limits", {}).get("memory") or not resources.get("requests", {}).get("cpu"):
        yield "has no limits"
    if container["image"].partition(":")[2] in ("", "latest"):
        yield f"has no version in '{container['image']}'"
    ray = container["name"].startswith("ray-")
    if (
        lasting
        and container["name"] != "ray-job-submitter"
        and not {"readinessProbe", "livenessProbe"} <= set(container)
    ):
        yield "has no probes"
    mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
    if left := mounted - set(volumes) - {"data"}:  # which a StatefulSet claims by itself
        yield f"mounts {sorted(left)}, which the pod doesn't have"
    if ray and resources.get("limits", {}).get("memory"):
        yield from _ray(container)
        if resources["requests"] != resources["limits"]:
            yield "asks for less than it may take"
        memory = [
            v["emptyDir"]["sizeLimit"] for v in volumes.values() if v.get("emptyDir", {}).get("medium") == "Memory"
        ]
        if sum(map(gibibytes, memory)) > gibibytes(resources["limits"]["memory"]) / 2:
            yield "has an object store of more than half of its memory"


def _ray(container: Resource) -> Iterator[str]:
    """A container in which something talks to Ray, or the autoscaler's options, which look like one."""
    values = {variable["name"]: variable.get("value") for variable in container.get("env", [])}
    submitter = container.get("name") == "ray-job-submitter"
    wanted = dict(list(WANTED.items())[: 3 if submitter else None])
    if wrong := [name for name, value in wanted.items() if values.get(name) != value]:
        yield f"isn't told {', '.join(wrong)}"
    if not any(mount["mountPath"] == "/run/dreamer4/token" for mount in container.get("volumeMounts", [])):
        yield "doesn't see the token"
    if not submitter and not re.fullmatch(r"redis://:\$\(\w+\)@redis:6379/1", values.get("DREAMER4_REGISTRY") or ""):
        yield "doesn't know the registry of runs"


def _cluster(spec: Resource) -> Iterator[str]:
    if spec["authOptions"] != {"mode": "token", "secretName": TOKEN}:
        yield "the cluster asks for no token"
    for problem in _ray(spec["autoscalerOptions"]):
        yield f"autoscaler {problem}"
    store = spec.get("gcsFaultToleranceOptions", {})
    if store.get("redisPassword", {}).get("valueFrom", {}).get("secretKeyRef", {}).get("name") != REDIS:
        yield "the head's memory has no password from a secret"
    if spec["headGroupSpec"]["rayStartParams"].get("num-cpus") != "0":
        yield "work may be put on the head"
    for group in spec["workerGroupSpecs"]:
        if not group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
            bounds = f"{group['minReplicas']} to {group['maxReplicas']}"
            yield f"{group['groupName']} starts with {group['replicas']} of {bounds}"
        if group["template"]["spec"].get("automountServiceAccountToken") is not False:
            yield f"{group['groupName']} may talk to Kubernetes"


def _plain_secrets(part: Any) -> Iterator[str]:
    """Words that stand where a reference to a secret should."""
    if isinstance(part, list):
        for child in part:
            yield from _plain_secrets(child)
    elif isinstance(part, dict):
        secret = re.search("PASSWORD|SECRET|_TOKEN$|_KEY$", str(part.get("name", "")), re.IGNORECASE)
        if secret and part.get("value"):
            yield f"'{part['name']}' is written out"
        for child in part.values():
            yield from _plain_secrets(child)


def gibibytes(quantity: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi|Ti)", quantity).groups()  # type: ignore[union-attr]
    return int(number) * {"Mi": 2**-10, "Gi": 1, "Ti": 2**10}[unit]


def admits(resources: list[Resource], source: Resource, target: Resource, port: int) -> bool:
    """Whether the network policies let a pod talk to another one, by TCP.

    Args:
        source, target: `{"pod": labels, "namespace": its labels}`; only those of `dreamer4` are under our policies.
    """
    return all(
        _lets(resources, one, other, port, direction)
        for one, other, direction in ((source, target, "egress"), (target, source, "ingress"))
    )


def _lets(resources: list[Resource], pod: Resource, other: Resource, port: int, direction: str) -> bool:
    if pod["namespace"].get("kubernetes.io/metadata.name") != "dreamer4":
        return True
    policies = [
        resource["spec"]
        for resource in resources
        if resource["kind"] == "NetworkPolicy"
        and direction.capitalize() in resource["spec"]["policyTypes"]
        and _selects(resource["spec"]["podSelector"], pod["pod"])
    ]
    rules = [rule for policy in policies for rule in policy.get(direction, [])]
    return not policies or any(_rule(rule, other, port, "to" if direction == "egress" else "from") for rule in rules)


def _rule(rule: Resource, other: Resource, port: int, side: str) -> bool:
    ports = [entry["port"] for entry in rule.get("ports", []) if entry.get("protocol", "TCP") == "TCP"]
    if "ports" in rule and port not in ports:
        return False
    return side not in rule or any(
        _selects(peer.get("podSelector", {}), other["pod"])
        and (
            _selects(peer["namespaceSelector"], other["namespace"])
            if "namespaceSelector" in peer
            else other["namespace"].get("kubernetes.io/metadata.name") == "dreamer4"
        )
        for peer in rule[side]
    )


def _selects(selector: Resource, labels: Resource) -> bool:
    return all(labels.get(name) == value for name, value in selector.get("matchLabels", {}).items())
