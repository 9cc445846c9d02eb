"""Stage 4: workers imagine, one learner improves the policy, references in between.

What the loop promises, whatever is lost on the way:

* at most (max_staleness + 1) x rollouts_per_step rollouts are running or waiting to be used, the oldest first;
* the rollouts of an update are imagined with exactly the weights `Plan.version` says, so that on CPUs every run gives
  the same bits, with any number of workers, and max_staleness 0 equals a plain loop in one process;
* no index is skipped, every update is applied once and in order; after a fault the learner goes on from its last
  checkpoint and what comes after it is imagined again; from a node that will be taken away it moves in time, and
  nothing is done again;
* only references pass through here: a rollout goes from its worker to the learner, weights go back.
"""

import time
from collections.abc import Callable
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import RayError

from cluster.nodes import living_nodes, node_of
from cluster.placement import cause_of, mistake_behind, objects_lost, result
from cluster.policy.autoscale import Autoscaler
from cluster.policy.ledger import Ledger
from cluster.policy.messages import Request, Told
from cluster.policy.pool import Arrived, Lost, Pool
from cluster.policy.schedule import Plan, Schedule
from cluster.policy.throughput import Throughput
from cluster.policy.worker_group import DRAINING, PENDING, READY, STARTING
from dreamer4.errors import RunError

AHEAD = 2  # updates handed to the learner: Ray fetches the rollouts of the second one while the first is computed
PATIENCE = 0.1  # seconds that the loop waits for anything to happen
SHOW_SECONDS = 2.0  # between rows of telemetry


class ImaginationLoop:
    """Closes the one arrow back. Runs in the coordinator; plain but for references and handles.

    Args:
        learner: handle of an actor with the calls of `cluster.policy.trainer.PolicyTrainer`.
        lease: what the learner obeys; None where nobody else could drive it.
        show: told a row of telemetry every `SHOW_SECONDS`.
        stopped: asked again and again; true ends the loop after what is under way.
    """

    def __init__(
        self,
        plan: Plan,
        pool: Pool,
        learner: Any,
        lease: Any,
        ledger: Ledger,
        autoscaler: Autoscaler,
        show: Callable[[dict[str, Any]], None] = lambda row: None,
        stopped: Callable[[], bool] = lambda: False,
    ):
        self.plan, self.pool, self.learner, self.lease = plan, pool, learner, lease
        self.ledger, self.autoscaler, self.show, self.stopped = ledger, autoscaler, show, stopped
        self.throughput = Throughput()
        self.receipts: dict[ObjectRef, tuple[int, int, ObjectRef]] = {}  # of updates: epoch, number, new weights
        self.versions: dict[int, ObjectRef] = {}
        self.metrics: dict[str, float] = {}
        self.schedule = Schedule(plan)
        self.sought: tuple[ObjectRef, str] | None = None  # the learner's answer to where it is, and why it was asked
        self.learner_node, self.left = "", (0, "")  # where it is; process and node that it was told to leave

    def run(self) -> None:
        """To the end of the plan, or until `stopped`.

        Raises:
            DreamerError: a mistake of the user, a lost lease, or an update that is not finite.
            RunError: workers fail again and again.
        """
        self.seek("start")
        while not self.schedule.done and not self.stopped():
            self.take_back(self.pool.reconcile(time.monotonic()))
            if self.sought is None:
                self.dispatch()
                self.move() if self.learner_leaves else self.feed()
            self.wait()
            self.observe()
        self.tell(time.monotonic())

    def seek(self, reason: str) -> None:
        """Asks the learner how far it is, and waits to ask for rollouts; a restarted one answers once it is placed."""
        self.sought = self.learner.position.remote(self.lease), reason

    def found(self, told: Told, reason: str) -> None:
        """The learner has answered: the run goes on from where it is."""
        node = node_of(self.learner)
        if (told.process, node) == self.left:  # not gone yet; nodes may number their processes alike
            self.seek(reason)
            return
        self.sought, self.learner_node = None, node
        self.throughput.cpu_seconds += told.cpu_seconds
        if self.schedule.epoch == 0:
            self.ledger.note("start", updates=told.updates)
            self.begin(told.updates)
        elif self.schedule.outstanding or told.updates != self.schedule.updates:
            self.rewound(told.updates, reason)
        else:  # nothing was under way in it, but its copies of the weights may have gone with its node
            self.versions = self.weights(told.updates)

    def begin(self, updates: int) -> None:
        """Goes on from where the learner is; whatever was asked for before is not wanted any more."""
        self.schedule.rewind(updates)
        self.versions = self.weights(updates)

    def weights(self, updates: int) -> dict[int, ObjectRef]:
        """The versions that rollouts may be imagined with after so many updates, asked of the learner."""
        oldest = self.plan.version(updates)
        return {version: self.learner.weights.remote(version) for version in range(oldest, updates + 1)}

    @property
    def learner_leaves(self) -> bool:
        """Whether the learner's node will be taken away."""
        return self.learner_node in self.pool.leaving

    def move(self) -> None:
        """Commits, and has Ray start the learner on another node, once it has answered what it was handed."""
        if self.receipts:
            return
        self.left = self.commit().process, self.learner_node
        self.ledger.note("move", updates=self.schedule.updates, reason="the learner's node is going away")
        ray.kill(self.learner, no_restart=False)
        self.seek("the learner moved")

    def commit(self) -> Told:
        """A checkpoint of what is applied."""
        told: Told = result(self.learner.commit.remote(self.lease))
        if told.saved:
            self.ledger.note("saved", updates=told.updates)
        return told

    def dispatch(self) -> None:
        """Asks for rollouts, the oldest first, of whichever worker has the least to do."""
        self.schedule.admit()
        for group in self.pool.places():
            if (index := self.schedule.take()) is None:
                break
            version = self.plan.version(self.plan.step_of(index))
            group.submit(Request(index, version, self.schedule.epoch), self.versions[version])

    def feed(self) -> None:
        """Hands complete updates to the learner."""
        while self.schedule.outstanding < AHEAD and (fed := self.schedule.feed()) is not None:
            step, rollouts = fed
            call = self.learner.step.options(num_returns=2)
            told, weights = call.remote(self.lease, step, self.plan.saves(step), *rollouts)
            self.receipts[told] = self.schedule.epoch, step, weights

    def wait(self) -> None:
        """Until something has happened, or a moment; takes everything that has."""
        self.tick()
        sought = [self.sought[0]] if self.sought else []
        owners = self.pool.owners()
        refs = [*sought, *self.receipts, *owners]
        if not refs:
            time.sleep(PATIENCE)
            return
        ready, _ = ray.wait(refs, num_returns=1, timeout=PATIENCE, fetch_local=False)
        if ready and len(refs) > 1:
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)
        for ref in ready:
            if self.sought and ref == self.sought[0]:
                self.found(result(ref), self.sought[1])
            elif ref in self.receipts:
                self.updated(ref)
            elif (outcome := self.pool.collect(ref, owners[ref])) is not None:
                self.take(outcome)

    def take(self, outcome: Arrived | Lost) -> None:
        """A rollout is there, or is to be imagined again."""
        if isinstance(outcome, Lost):
            self.take_back([outcome])
            return
        request, plan = outcome.request, self.plan
        lag = plan.step_of(request.index) - request.version
        self.throughput.rollout(outcome.cost, time.monotonic() - request.since, lag, outcome.worker)
        if request.epoch == self.schedule.epoch:
            self.schedule.arrive(request.index, outcome.rollout)

    def take_back(self, outcomes: list[Lost]) -> None:
        """Requests of lost workers are asked for again."""
        for lost in outcomes:
            wanted = [request for request in lost.requests if request.epoch == self.schedule.epoch]
            indices = sorted(request.index for request in wanted)
            self.ledger.note("lost", worker=lost.worker, indices=indices, reason=lost.reason)
            for request in wanted:
                self.schedule.give_back(request.index)
                if lost.stale:  # the weights went with their node; the learner has them still
                    self.versions[request.version] = self.learner.weights.remote(request.version)

    def updated(self, receipt: ObjectRef) -> None:
        """The learner has answered: an update is applied, or it is elsewhere than we thought."""
        epoch, step, weights = self.receipts.pop(receipt)
        try:
            told = ray.get(receipt)
        except RayError as error:
            if mistake := mistake_behind(error):
                raise mistake from None
            if not objects_lost(error):
                raise RunError(f"update {step} failed: {cause_of(error)}: see the learner's log in Ray") from error
            if epoch == self.schedule.epoch and self.sought is None:
                self.seek(cause_of(error))
            return
        self.throughput.learner(told.seconds, told.cpu_seconds)
        if epoch != self.schedule.epoch:
            return
        if told.updates != step + 1:
            self.rewound(told.updates, "the learner came back from its checkpoint")
            return
        self.schedule.applied(step)
        self.versions[told.updates] = weights
        self.versions.pop(self.plan.version(told.updates) - 1, None)
        self.metrics = told.metrics or self.metrics
        self.ledger.note("applied", step=step, version=self.plan.version(step), process=told.process)
        if told.saved or self.plan.saves(step):
            self.ledger.note("saved", updates=told.updates)

    def rewound(self, updates: int, reason: str) -> None:
        self.ledger.note("rewind", updates=updates, expected=self.schedule.updates, reason=reason)
        self.begin(updates)

    def observe(self) -> None:
        """Counts the time, decides on the number of workers, and shows a row now and then."""
        now, meter = self.tick(), self.throughput
        if self.autoscaler.due(now):
            starves, idle = meter.learner_starves.take(), meter.workers_idle.take()
            wanted = self.autoscaler.decide(now, starves, idle, self.pool.missing)
            if wanted != self.pool.wanted:
                self.ledger.note(
                    "resize", wanted=wanted, learner_starves=round(starves, 3), workers_idle=round(idle, 3)
                )
                self.pool.resize(wanted)
        if meter.due(now, SHOW_SECONDS):
            self.tell(now)

    def tick(self) -> float:
        """Counts the time that has passed for what was going on in it; returns the time."""
        now = time.monotonic()
        self.throughput.tick(now, bool(self.receipts), self.pool.idle_share(), self.pool.counts[READY])
        return now

    def tell(self, now: float) -> None:
        self.learner_node = node_of(self.learner)
        counts = self.pool.counts
        queue = [request for group in self.pool.groups for request, _ in group.requests.values()]
        versions = [request.version for request in queue if request.epoch == self.schedule.epoch]
        ready = [group.short_name for group in self.pool.groups if group.state == READY]
        self.show(
            {
                **self.throughput.row(now, ready),
                "step": self.schedule.updates,
                "steps": self.plan.steps,
                "learner_metric": self.metrics,
                "workers_wanted": self.pool.wanted,
                "workers_pending": counts[PENDING] + counts[STARTING],
                "workers_ready": counts[READY],
                "workers_draining": counts[DRAINING],
                "workers_lost": self.pool.lost,
                "rollouts_in_flight": len(queue),
                "rollouts_waiting": len(self.schedule.waiting),
                "rollouts_accepted": len(self.schedule.arrived),
                "oldest_request_s": now - min(request.since for request in queue) if queue else 0.0,
                "weights_version": self.schedule.updates,
                "weights_lag": self.schedule.updates - min(versions, default=self.schedule.updates),
                "weights_lag_limit": self.plan.max_staleness,
                "nodes": living_nodes(),
            }
        )
