"""What the dashboard "Imagination" shows: one list for Grafana's JSON (`grafana.py`) and for the built-in page.

Every line of a panel is a query to Prometheus; those of a run can be read from its `telemetry.jsonl` as well.
"""

from dataclasses import dataclass
from typing import Literal

from cluster.policy.telemetry import METRICS, exported

SCOPE = 'run=~"$run",stage=~"$stage"'  # Grafana puts the chosen run and stage in, and so does the page
LEARNER = ("imagined_return", "value_start", "entropy", "kl", "policy", "value", "policy_norm", "value_norm")
MOST_WORKERS = 20  # with a line of their own

Unit = Literal["frames/s", "count", "share", "seconds", "per second", "bytes", "price", ""]


@dataclass(frozen=True)
class Line:
    """One query, and what it is called.

    Args:
        name: of its only line, or with `{{label}}` of each of several.
        query: PromQL.
        key: of a row of telemetry, with the same numbers; `key.name` where the row has several; None: not there.
        shape: what is taken of a row's number: itself, 1 less it, or its growth per second.
    """

    name: str
    query: str
    key: str | None = None
    shape: Literal["itself", "rest", "rate"] = "itself"


@dataclass(frozen=True)
class Panel:
    """A chart.

    Args:
        text: what it says, and what to do about it.
        most: top of the axis where that is fixed.
        gpu: shown only where a node has a GPU.
    """

    title: str
    unit: Unit
    text: str
    lines: tuple[Line, ...]
    most: float | None = None
    gpu: bool = False


def gauge(name: str, key: str) -> Line:
    """A number of the run as it is. Of a coordinator that was just replaced the former one may linger: take one."""
    by = METRICS[key].by
    labels = f"run, stage, {by}" if by else "run, stage"
    return Line(name, f"max by ({labels}) ({exported(key)}{{{SCOPE}}})", key)


def learner(name: str, metric: str) -> Line:
    query = f'max by (run, stage) ({exported("learner_metric")}{{{SCOPE},name="{metric}"}})'
    return Line(name, query, f"learner_metric.{metric}")


THROUGHPUT = (
    Panel(
        "Imagined frames per second",
        "frames/s",
        "The system's speed: all workers together. It should rise with every worker that joins.",
        (gauge("all workers", "frames_per_s"),),
    ),
    Panel(
        "Workers",
        "count",
        "Wanted by the controller; pending ones wait for a node or load their models. Lost ones are replaced.",
        (
            gauge("wanted", "workers_wanted"),
            gauge("imagine", "workers_ready"),
            gauge("pending", "workers_pending"),
            gauge("draining", "workers_draining"),
            gauge("lost in all", "workers_lost"),
        ),
    ),
    Panel(
        "Imagined frames per second of each worker",
        "frames/s",
        f"Up to {MOST_WORKERS} workers, and their mean. One that lags behind sits on a slow or shared node.",
        (
            gauge("mean", "frames_per_s_per_worker"),
            Line(
                "worker {{worker}}",
                f"topk({MOST_WORKERS}, max by (run, stage, worker) ({exported('worker_frames_per_s')}{{{SCOPE}}}) > 0)",
                "worker_frames_per_s",
            ),
        ),
    ),
    Panel("Nodes", "count", "Living nodes of the cluster, the head included.", (gauge("nodes", "nodes"),)),
    Panel(
        "Cost of a million imagined frames",
        "price",
        "Nodes x resources.node_price / imagined frames: falls while workers join, rises when they idle.",
        (gauge("per million frames", "cost_per_million_frames"),),
    ),
)
WAITING = (
    Panel(
        "Who waits for whom",
        "share",
        "The learner starves: more workers help. Workers idle: fewer do as well. Both low is a balanced run.",
        (
            Line(
                "learner busy",
                f"1 - max by (run, stage) ({exported('learner_starves')}{{{SCOPE}}})",
                "learner_starves",
                "rest",
            ),
            gauge("learner starves", "learner_starves"),
            gauge("workers idle", "workers_idle"),
        ),
        most=1,
    ),
    Panel(
        "Updates and rollouts per second",
        "per second",
        "What the learner applies and what arrives for it.",
        (gauge("updates", "updates_per_s"), gauge("rollouts", "rollouts_per_s")),
    ),
    Panel(
        "Rollouts on their way",
        "count",
        "Waiting for a worker, being imagined, and waiting for the learner. The three together are bounded.",
        (
            gauge("wait for a worker", "rollouts_waiting"),
            gauge("in flight", "rollouts_in_flight"),
            gauge("wait for the learner", "rollouts_accepted"),
        ),
    ),
    Panel(
        "Queue age",
        "seconds",
        "The oldest rollout in flight: far above the mean, a worker hangs. Without updates for long, everything does.",
        (
            gauge("oldest in flight", "oldest_request_s"),
            gauge("mean delay of rollouts", "rollout_delay_s"),
            gauge("since the last update", "since_update_s"),
        ),
    ),
    Panel(
        "Staleness",
        "count",
        "Updates between the weights of a rollout and its use, and how far workers are behind the newest weights.",
        (
            gauge("staleness", "staleness"),
            gauge("weights lag", "weights_lag"),
            gauge("limit", "weights_lag_limit"),
        ),
    ),
    Panel(
        "Progress",
        "count",
        "Updates applied and planned, and the version of the newest weights.",
        (gauge("applied", "step"), gauge("planned", "steps"), gauge("weights version", "weights_version")),
    ),
)
LEARNING = (
    Panel(
        "Imagined return",
        "",
        "What the policy gets in the world model, and what the value head expected of it.",
        (learner("return", "imagined_return"), learner("value at the start", "value_start")),
    ),
    Panel(
        "Policy: entropy and distance to the prior",
        "",
        "In nats. Entropy that collapses early, or a growing distance, says that the policy leaves the data.",
        (learner("entropy", "entropy"), learner("KL to the prior", "kl")),
    ),
    Panel(
        "Losses and gradient norms",
        "",
        "Of the policy (PMPO) and of the value head. A norm that jumps and stays is the first sign of divergence.",
        (
            learner("policy loss", "policy"),
            learner("value loss", "value"),
            learner("policy norm", "policy_norm"),
            learner("value norm", "value_norm"),
        ),
    ),
)
MACHINES = (
    Panel(
        "Object store",
        "bytes",
        "Used and spilled bytes of all nodes. A run holds a few rollouts, so anything spilled is a mistake.",
        (
            Line("used", "sum(ray_object_store_used_memory)"),
            Line("free", "sum(ray_object_store_available_memory)"),
            Line("spilled", 'sum(ray_object_store_memory{Location="SPILLED"})'),
        ),
    ),
    Panel(
        "Rollouts through the object store",
        "bytes",
        "Bytes per second from the workers to the learner.",
        (
            Line(
                "bytes per second",
                f"max by (run, stage) (rate({exported('store_bytes')}{{{SCOPE}}}[1m]))",
                "store_bytes",
                "rate",
            ),
        ),
    ),
    Panel(
        "Processors",
        "share",
        "Mean utilisation of the nodes' CPUs.",
        (Line("all nodes", "avg(ray_node_cpu_utilization) / 100"),),
        most=1,
    ),
    Panel(
        "Memory of the nodes",
        "bytes",
        "In use and there, of all machines together.",
        (Line("used", "sum(max by (ip) (ray_node_mem_used))"), Line("there", "sum(max by (ip) (ray_node_mem_total))")),
    ),
    Panel(
        "GPU utilisation",
        "share",
        "Of each GPU. Workers should keep theirs above 0.9; the learner's may idle.",
        (Line("{{instance}} {{GpuIndex}}", "max by (instance, GpuIndex) (ray_node_gpus_utilization) / 100"),),
        most=1,
        gpu=True,
    ),
    Panel(
        "GPU memory",
        "bytes",
        "In use, of each GPU.",
        (Line("{{instance}} {{GpuIndex}}", "max by (instance, GpuIndex) (ray_node_gram_used) * 1048576"),),
        gpu=True,
    ),
)
ROWS: dict[str, tuple[Panel, ...]] = {
    "Throughput and cost": THROUGHPUT,
    "Who waits": WAITING,
    "Learner": LEARNING,
    "Machines": MACHINES,
}
