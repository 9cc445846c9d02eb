"""Why a run is as fast as it is, in one sentence, from its latest numbers."""

from collections.abc import Mapping
from typing import NamedTuple

from cluster.policy.autoscale import CALM, IDLE, STARVING

QUIET = 120.0  # seconds without an update after which that is what to say
OLD = 30.0  # seconds without a row after which a run doesn't seem to run


class Diagnosis(NamedTuple):
    level: str  # good, note, bad
    text: str


def diagnose(latest: Mapping[str, float], age: float) -> Diagnosis:
    """What holds the run back.

    Args:
        latest: by keys of `cluster.policy.telemetry.METRICS`, as far as they are known.
        age: seconds since the run told them.
    """
    if "step" not in latest:
        return Diagnosis("note", "Stage 4 has told nothing yet: it starts with `dreamer4 train policy`.")
    step, steps = latest["step"], latest.get("steps", 0)
    done = steps and step >= steps
    if done or age > OLD:
        what = "Done" if done else "Not running"
        of = f" of {steps:.0f}" if steps else ""
        return Diagnosis("good" if done else "note", f"{what}: {step:.0f}{of} updates, last heard of {_time(age)} ago.")
    ready, wanted = latest.get("workers_ready", 0), latest.get("workers_wanted", 0)
    pending = latest.get("workers_pending", 0)
    starves, idle = latest.get("learner_starves", 0), latest.get("workers_idle", 0)
    quiet = latest.get("since_update_s", 0)
    if quiet > QUIET:
        why = f"{pending:.0f} workers wait for a node or load" if ready == 0 else "see the oldest rollout in flight"
        return Diagnosis("bad", f"No update for {_time(quiet)}: {why}.")
    if ready == 0:
        return Diagnosis("note", f"No worker imagines yet: {pending:.0f} of {wanted:.0f} wait for a node or load.")
    if starves > STARVING and pending:
        text = f"The learner starves {starves:.0%} of the time; {pending:.0f} of {wanted:.0f} workers are to come."
        return Diagnosis("note", text)
    if starves > STARVING and idle < CALM:
        text = (
            f"The learner starves {starves:.0%} of the time with {ready:.0f} workers, none of them idle: more workers "
            "help, up to resources.max_workers."
        )
        return Diagnosis("bad" if starves > 0.5 else "note", text)
    if starves > STARVING:
        text = (
            f"Both sides wait, the learner {starves:.0%} and the workers {idle:.0%} of the time: rollouts are on their "
            "way, or policy.max_staleness keeps workers from running ahead."
        )
        return Diagnosis("note", text)
    if idle > IDLE:
        text = f"Workers idle {idle:.0%} of the time: the learner is the bottleneck, and fewer workers would do."
        return Diagnosis("note", text)
    return Diagnosis("good", f"Balanced: the learner is busy {1 - starves:.0%} of the time, workers idle {idle:.0%}.")


def _time(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
