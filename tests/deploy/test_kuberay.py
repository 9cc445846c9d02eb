"""The Kubernetes files, without a Kubernetes. Every rule is shown to catch a file that breaks it."""

import copy
import json
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from kuberay import admits, gibibytes, invalid, templates, unsafe
from kustomize import Resource, apply, build, documents

from cluster.main import build_parser, read_settings
from cluster.presets import preset
from cluster.settings import override

OVERLAYS = ("cpu", "gpu")


@pytest.fixture(scope="module", params=OVERLAYS)
def resources(request: pytest.FixtureRequest, deploy: Path) -> list[Resource]:
    """What an overlay creates."""
    return build(deploy / "kuberay" / "overlays" / request.param)


@pytest.fixture(scope="module")
def gpu(deploy: Path) -> list[Resource]:
    return build(deploy / "kuberay" / "overlays" / "gpu")


@pytest.fixture(scope="module")
def job(deploy: Path) -> Resource:
    (job,) = documents(deploy / "kuberay" / "job.yaml")
    return job


def one(resources: list[Resource], kind: str) -> Resource:
    (found,) = [resource for resource in resources if resource["kind"] == kind]
    return found


def test_all_is_as_kubernetes_and_kuberay_want_it(resources, job):
    assert list(invalid([*resources, job])) == []


def test_all_is_safe(resources, job):
    assert list(unsafe([*resources, job])) == []


@pytest.mark.parametrize("name", OVERLAYS)
def test_kustomize_builds_the_same(deploy, name):
    """Where kubectl is installed; everywhere else our own small one stands for it."""
    kubectl = shutil.which("kubectl") or pytest.skip("kubectl is not installed")
    folder = deploy / "kuberay" / "overlays" / name
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    theirs, ours = list(yaml.safe_load_all(done.stdout)), build(folder)
    assert sorted(map(canonical, theirs)) == sorted(map(canonical, ours))


def canonical(resource: Resource) -> str:
    return json.dumps(resource, sort_keys=True)


CLUSTER, POD = "RayCluster", "/spec/headGroupSpec/template/spec"
GROUP = "/spec/workerGroupSpecs/1"
WORKER = f"{GROUP}/template/spec/containers/0"


@pytest.mark.parametrize(
    ("kind", "path", "value", "sentence"),
    [
        (CLUSTER, "/spec/authOptions/mode", "magic", "is not one of"),
        (CLUSTER, f"{GROUP}/maxReplicaz", 3, "maxReplicaz"),
        (CLUSTER, f"{GROUP}/minReplicas", "0", "is not of type 'integer'"),
        (CLUSTER, f"{GROUP}/template/extra", {}, "imagination: extra"),
        (CLUSTER, f"{WORKER}/terminationMessagePath", 3, "is not of type"),
        (CLUSTER, f"{WORKER}/probe", {}, "probe"),
        (CLUSTER, f"{POD}/containers", None, "containers"),
        ("StatefulSet", "/spec/replicaz", 2, "replicaz"),
        ("ConfigMap", "/dat", {}, "dat"),
        ("PersistentVolumeClaim", "/spec/accessModes", "ReadWriteMany", "is not of type"),
    ],
)
def test_wrong_form_is_found(gpu, kind, path, value, sentence):
    (found,) = invalid([one(changed(gpu, kind, path, value), kind)])
    assert sentence in found


@pytest.mark.parametrize(
    ("kind", "path", "value", "sentence"),
    [
        (CLUSTER, "/spec/authOptions", {"mode": "disabled"}, "asks for no token"),
        (CLUSTER, "/spec/autoscalerOptions/env/0/value", "disabled", "autoscaler isn't told RAY_AUTH_MODE"),
        (CLUSTER, f"{WORKER}/env/0", None, "isn't told RAY_AUTH_MODE"),
        (CLUSTER, f"{WORKER}/env/1/value", "/etc/other", "isn't told RAY_AUTH_TOKEN_PATH"),
        (CLUSTER, f"{WORKER}/env/6", None, "doesn't know the registry"),
        (CLUSTER, f"{WORKER}/volumeMounts/0", None, "doesn't see the token"),
        (CLUSTER, f"{WORKER}/env/-", {"name": "REDIS_PASSWORD", "value": "x"}, "is written out"),
        (CLUSTER, f"{WORKER}/securityContext/capabilities/drop", ["NET_RAW"], "keeps privileges"),
        (CLUSTER, f"{WORKER}/securityContext/privileged", True, "is privileged"),
        (CLUSTER, f"{WORKER}/image", "dreamer4:latest", "has no version"),
        (CLUSTER, f"{WORKER}/resources/limits/memory", None, "has no limits"),
        (CLUSTER, f"{WORKER}/resources/requests/cpu", "1", "asks for less"),
        (CLUSTER, f"{WORKER}/livenessProbe", None, "has no probes"),
        (CLUSTER, f"{WORKER}/volumeMounts/-", {"name": "x", "mountPath": "/x"}, "mounts ['x']"),
        (CLUSTER, f"{POD}/securityContext/runAsUser", 0, "may run as root"),
        (CLUSTER, f"{POD}/securityContext/seccompProfile", None, "no seccomp profile"),
        (CLUSTER, f"{POD}/hostNetwork", True, "not separated from its host"),
        (CLUSTER, f"{POD}/volumes/0/secret/defaultMode", 0o644, "everybody in the pod"),
        (CLUSTER, f"{POD}/volumes/1/persistentVolumeClaim/claimName", "mine", "nobody claims"),
        (CLUSTER, f"{POD}/volumes/2/emptyDir/sizeLimit", "15Gi", "more than half of its memory"),
        (CLUSTER, f"{POD}/volumes/-", {"name": "h", "hostPath": {"path": "/"}}, "disk of its host"),
        (CLUSTER, "/spec/headGroupSpec/rayStartParams/num-cpus", "4", "may be put on the head"),
        (CLUSTER, "/spec/gcsFaultToleranceOptions/redisPassword", {"value": "x"}, "no password from a secret"),
        (CLUSTER, f"{GROUP}/maxReplicas", -1, "starts with 0 of 0 to -1"),
        (CLUSTER, f"{GROUP}/template/spec/automountServiceAccountToken", True, "may talk to Kubernetes"),
        ("Service", "/spec/type", "LoadBalancer", "open to the outside"),
        ("ConfigMap", "/kind", "Secret", "there is a Secret"),
    ],
)
def test_unsafe_change_is_found(gpu, kind, path, value, sentence):
    found = list(unsafe(changed(gpu, kind, path, value)))
    assert any(sentence in problem for problem in found), found


def changed(resources: list[Resource], kind: str, path: str, value: Any) -> list[Resource]:
    """A copy in which one thing is otherwise; None: is missing."""
    resources = copy.deepcopy(resources)
    operation = {"op": "remove"} if value is None else {"op": "add" if path.endswith("-") else "put", "value": value}
    apply(one(resources, kind), {**operation, "path": path})
    return resources


def test_patch_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no /spec/a/b"):
        apply({"kind": "X", "spec": {}}, {"op": "replace", "path": "/spec/a/b", "value": 1})


# who may talk to whom


HOME = {"kubernetes.io/metadata.name": "dreamer4"}
PODS = {
    "head": {"pod": {"app": "ray", "ray.io/node-type": "head"}, "namespace": HOME},
    "worker": {"pod": {"app": "ray", "ray.io/node-type": "worker"}, "namespace": HOME},
    "redis": {"pod": {"app": "redis"}, "namespace": HOME},
    "submitter": {"pod": {"app": "submitter"}, "namespace": HOME},
    "cleanup": {"pod": {"app": "ray", "ray.io/node-type": "redis-cleanup"}, "namespace": HOME},
    "stranger": {"pod": {"app": "ray"}, "namespace": {"kubernetes.io/metadata.name": "other"}},
    "neighbour": {"pod": {"app": "web"}, "namespace": HOME},
    "prometheus": {"pod": {}, "namespace": {"kubernetes.io/metadata.name": "monitoring"}},
    "operator": {
        "pod": {"app.kubernetes.io/name": "kuberay-operator"},
        "namespace": {"kubernetes.io/metadata.name": "kuberay-system"},
    },
}
GCS, DASHBOARD, METRICS, REDIS = 6379, 8265, 8080, 6379
ALLOWED = {
    *(
        (a, b, port)
        for a in ("head", "worker")
        for b in ("head", "worker")
        for port in (GCS, DASHBOARD, METRICS, 34567)
    ),
    *((who, "redis", REDIS) for who in ("head", "worker", "cleanup")),
    *((who, "head", DASHBOARD) for who in ("submitter", "operator")),
    *(("prometheus", whom, METRICS) for whom in ("head", "worker")),
}


def test_only_who_has_to_talks_to_anybody(gpu):
    """Every pair of pods, over ports of every kind. (The cleanup has the labels of a head's pod as well.)"""
    ours = ("head", "worker", "redis")
    for source in sorted(set(PODS) - {"cleanup"}):
        for target in ours:
            for port in (GCS, DASHBOARD, METRICS, 34567):
                talks = admits(gpu, PODS[source], PODS[target], port)
                assert talks == ((source, target, port) in ALLOWED), (source, target, port)
    assert admits(gpu, PODS["cleanup"], PODS["redis"], REDIS)


def test_without_the_policies_a_neighbour_gets_in(gpu):
    """The negative control of the test before."""
    assert not admits(gpu, PODS["neighbour"], PODS["redis"], REDIS)
    left = [
        r for r in gpu if not (r["kind"] == "NetworkPolicy" and r["metadata"]["name"] in ("nobody", "redis", "names"))
    ]
    assert admits(left, PODS["neighbour"], PODS["redis"], REDIS)


# whether runs fit


def test_workers_of_the_paper_fit_into_their_pods(gpu):
    """Each group of `resources.shards` ranks is one placement group on one node."""
    pods = {name: template["spec"] for name, template in templates(one(gpu, CLUSTER))}
    wanted = preset("minecraft").resources
    for name, cpus, gpus in (
        ("imagination", wanted.shards, wanted.shards * wanted.worker_gpus),
        ("imagination", 1, wanted.trainer_gpus),  # the learner
        ("pretrain", 8, 8 * wanted.trainer_gpus),  # all GPUs of a machine in use
    ):
        limits = pods[name]["containers"][0]["resources"]["limits"]
        assert int(limits["cpu"]) >= cpus and int(limits["nvidia.com/gpu"]) >= gpus, name
        store = next(volume["emptyDir"] for volume in pods[name]["volumes"] if volume["name"] == "memory")
        assert gibibytes(store["sizeLimit"]) * 2**30 >= wanted.object_store_mb * 1e6, name


def test_small_cluster_has_no_gpus_and_room_for_the_smoke_test(deploy):
    cluster = one(build(deploy / "kuberay" / "overlays" / "cpu"), CLUSTER)
    pods = {name: template["spec"]["containers"][0]["resources"]["limits"] for name, template in templates(cluster)}
    assert all(set(limits) == {"cpu", "memory"} for limits in pods.values())
    assert int(pods["imagination"]["cpu"]) >= 1 + preset("smoke").resources.workers


# the job


def test_job_is_a_command_of_ours_on_the_cluster_that_is_there(job, gpu):
    program, *words = shlex.split(job["spec"]["entrypoint"])
    options, rest = build_parser().parse_known_args(words)
    assert program == "dreamer4" and (options.verb, options.stage) == ("train", "policy")
    override(preset("minecraft"), read_settings(rest))
    cluster = one(gpu, CLUSTER)
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    assert job["metadata"]["namespace"] == cluster["metadata"]["namespace"]
    images = {t["spec"]["containers"][0]["image"] for r in (cluster, job) for _, t in templates(r)}
    assert len(images) == 1
    mount = next(
        v
        for v in cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]
        if v["name"] == "runs"
    )
    assert str(options.run).startswith(f"{mount['mountPath']}/")
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"]).keys() <= {"env_vars", "config"}, "nothing is downloaded"
