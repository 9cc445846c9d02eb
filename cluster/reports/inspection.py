"""Looks at a run's models on validation episodes, in a process of its own, and keeps what it found."""

import time
from pathlib import Path
from typing import Any

from actors.inspection import save_inspection
from actors.inspector import Inspector
from cluster.clock import Clock
from cluster.models import RunData, load_agent, load_policy, load_tokenizer, load_value
from cluster.placement import result, worker
from cluster.run import Run

STEPS = 16  # of imagination


class InspectorActor:
    """The inspector of a run, with everything loaded from the run's files."""

    def __init__(self, path: str):
        self.run = run = Run.attach(Path(path))
        data, agent, config = RunData(run), load_agent(run), run.config
        self.inspector = Inspector(
            tokenizer=load_tokenizer(run),
            dynamics=agent.dynamics,
            heads=agent.heads,
            policies={name: load_policy(run, name) for name in ("bc", "pmpo")},
            dataset=data.dataset,
            latents=data.latents(),
            validation_E=~data.training_E,
            shortcut=config.shortcut,
            imagination=config.imagination,
            env_name=config.env,
            seed=config.seed,
            value=load_value(run),
            discount=config.policy.discount,
        )

    def measure(self) -> tuple[dict[str, Any], float]:
        """All measurements, and the CPU seconds of the process."""
        return self.inspector.measure(self.run.config.evaluation.windows, STEPS), time.process_time()


def inspect(run: Run) -> None:
    """Measures the models of a run and writes the folder `inspection/`."""
    threads = run.config.resources.worker_threads
    actor = worker(InspectorActor, name="inspector", threads=threads).remote(str(run.path))
    with Clock(run, "inspect") as clock:
        found, cpu = result(actor.measure.remote())
        clock.add_cpu(cpu)
    save_inspection(run.path / "inspection", found)
    run.finish("inspect", clock.record())
