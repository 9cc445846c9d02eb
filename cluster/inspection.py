"""Looks at a run's models on validation episodes, in a process of its own, and keeps numbers and pictures."""

import io
import time
from pathlib import Path
from typing import Any

import numpy as np

from actors.inspector import Inspector
from cluster.clock import Clock
from cluster.models import RunData, load_agent, load_tokenizer
from cluster.placement import result, worker
from cluster.run import Run
from dreamer4.errors import RunError
from dreamer4.files import read_json, write_atomic, write_json


class InspectorActor:
    """An inspector of a run, with everything loaded from its files."""

    def __init__(self, path: str):
        run = Run.attach(Path(path))
        data, agent, config = RunData(run), load_agent(run), run.config
        self.inspector = Inspector(
            load_tokenizer(run).cpu(),
            agent.dynamics.cpu(),
            agent.heads.cpu(),
            data.dataset,
            data.latents(),
            ~data.training_E,
            config.shortcut,
            config.imagination,
            config.env,
            config.seed,
        )

    def everything(self) -> tuple[dict[str, Any], float]:
        """All measurements, and the CPU seconds of the process."""
        return self.inspector.everything(), time.process_time()


def inspect(run: Run) -> None:
    """Measures the models of a run; numbers to `inspection/inspection.json`, pictures to `inspection/arrays.npz`."""
    threads = run.config.resources.worker_threads
    actor = worker(InspectorActor, name="inspector", threads=threads).remote(str(run.path))
    with Clock(run, "inspect") as clock:
        measured, cpu = result(actor.everything.remote())
        clock.add_cpu(cpu)
        save_inspection(run.path / "inspection", measured)
    run.finish("inspect", clock.record())


def save_inspection(folder: Path, measured: dict[str, dict[str, Any]]) -> None:
    """Splits measurements into numbers (JSON) and arrays (npz)."""
    arrays, numbers = {}, {}
    for name, values in measured.items():
        numbers[name] = {key: value for key, value in values.items() if not isinstance(value, np.ndarray)}
        arrays.update({f"{name}.{key}": value for key, value in values.items() if isinstance(value, np.ndarray)})
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomic(folder / "arrays.npz", buffer.getvalue())
    write_json(folder / "inspection.json", numbers)


def load_inspection(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """Numbers and arrays of an inspection, or None where there is none.

    Raises:
        RunError: a file is damaged.
    """
    if not (folder / "inspection.json").exists():
        return None
    try:
        with np.load(folder / "arrays.npz", allow_pickle=False) as file:
            return read_json(folder / "inspection.json"), dict(file)
    except (OSError, ValueError) as error:
        raise RunError(f"'{folder / 'arrays.npz'}' can't be read: {error}; delete '{folder}' and inspect again") from error
