"""The report of a run: one HTML page and its PNGs, from the files in the run directory, complete or not."""

import json
import math
from pathlib import Path
from typing import Any

from cluster import figures
from cluster.inspection import load_inspection
from cluster.page import Page
from cluster.run import Run
from cluster.settings import to_json
from cluster.telemetry import read_metrics
from dreamer4.files import read_json, write_atomic

ORDER = ("demonstrator", "random", "bc", "filtered_bc", "pmpo", "horizon_1", "shuffled")
LOSSES = {
    "tokenizer": ("mse",),
    "dynamics": ("shortcut",),
    "agent": ("shortcut", "policy", "reward", "continue"),
    "filtered_bc": ("policy",),
}


class Report:
    """Writes the parts of a page, and every picture as a file of its own beside it."""

    def __init__(self, run: Run):
        self.run, self.folder = run, run.path / "report"
        self.page = Page(f"Dreamer 4: {run.path.name}")

    def picture(self, name: str, png: bytes, caption: str) -> None:
        write_atomic(self.folder / f"{name}.png", png)
        self.page.picture(png, caption)

    def write(self) -> Path:
        self.results()
        self.world_model()
        self.imagination()
        self.training()
        self.times()
        self.page.folded("Configuration", json.dumps(to_json(self.run.config), indent=2))
        path = self.folder / "report.html"
        write_atomic(path, self.page.html().encode())
        return path

    def results(self) -> None:
        """The table of policies in the real environment."""
        self.page.heading(f"In the real environment ({self.run.config.env})")
        measured = evaluations(self.run.path)
        if not measured:
            return self.page.missing("No policy has been evaluated yet.")
        header = ["policy", "episodes", "mean return", "standard error", "success", "95 % interval", "z against BC"]
        self.page.table(header, [result_row(record, measured.get("bc")) for record in measured.values()])
        self.page.text(
            "Sampled actions. z: difference of the mean returns in standard errors of that difference; it says "
            "nothing about other seeds."
        )

    def world_model(self) -> None:
        self.page.heading("World model, on validation episodes")
        inspected = load_inspection(self.run.path / "inspection")
        if inspected is None:
            return self.page.missing("The models have not been inspected yet.")
        numbers, arrays = inspected
        coded, ahead, actions = numbers["reconstructions"], numbers["horizon"], numbers["actions"]
        self.picture(
            "reconstructions",
            figures.grid(list(arrays["reconstructions.pictures"])),
            f"Frames (above) and their reconstructions: {coded['psnr']:.1f} dB; the mean image has "
            f"{coded['psnr_mean_image']:.1f} dB.",
        )
        rows = []
        for pair, alive in zip(arrays["horizon.pictures"], arrays["horizon.pictures_alive"], strict=True):
            rows += [frames[alive.astype(bool)] for frames in pair]
        self.picture("horizon", figures.grid(rows, 2), "What followed (above) and what was imagined, with its actions.")
        steps = list(range(1, len(ahead["n"]) + 1))
        lines = {"model": "psnr", "copy of the last frame": "psnr_copy", "mean image": "psnr_mean_image"}
        plot = figures.curves({k: (steps, ahead[v]) for k, v in lines.items()}, "steps ahead", "PSNR, dB")
        self.picture("psnr", plot, "PSNR is fair only where the future is certain: a sharp guess loses to a blur.")
        if "agent_cell" in ahead:
            lines = {"model": "agent_cell", "copy of the last frame": "agent_cell_copy"}
            plot = figures.curves({k: (steps, ahead[v]) for k, v in lines.items()}, "steps ahead", "agent's cell right")
            self.picture(
                "agent_cell",
                plot,
                f"One step ahead {ahead['agent_cell'][0]:.2f}, copying {ahead['agent_cell_copy'][0]:.2f}. Balls per "
                f"imagined frame: {ahead['balls'][0]:.2f}, real {ahead['balls_real']:.2f}.",
            )
        self.page.text(
            f"Action-shuffle ratio {actions['ratio']:.2f}: error with another row's actions over error with the right "
            "ones; 1 would mean that actions don't matter to the model."
        )
        for head, found in numbers["heads"].items():
            table = [[f"{r['true']:g}", str(r["n"]), f"{r['mean']:.3f}", f"{r['std']:.3f}"] for r in found]
            self.page.table([f"true {head}", "frames", "predicted, mean", "spread"], table)

    def imagination(self) -> None:
        """Imagined returns over the updates, beside the real ones before and after."""
        self.page.heading("Imagined and real return")
        rows = read_metrics(self.run.metrics_path, "policy")
        if not rows:
            return self.page.missing("The policy has not been trained in imagination yet.")
        steps = [row["step"] for row in rows]
        window = max(1, len(rows) // 20)
        returns = {
            "imagined, over the horizon": (steps, figures.smoothed([r["imagined_return"] for r in rows], window)),
            "value of the start": (steps, figures.smoothed([r["value_start"] for r in rows], window)),
        }
        measured = evaluations(self.run.path)
        for name in ("bc", "pmpo"):
            if name in measured:
                real = measured[name]["mean_return"]
                returns[f"real episodes, {name}"] = ([steps[0], steps[-1]], [real, real])
        self.picture(
            "imagined_return",
            figures.curves(returns, "update", "return"),
            "Imagined returns are discounted and start in the middle of episodes; real ones are whole episodes.",
        )
        kl = figures.curves({"KL to the prior": (steps, [r["kl"] for r in rows])}, "update", "nats")
        self.picture("kl", kl, "Distance of the policy from the behaviour-cloned prior.")

    def training(self) -> None:
        self.page.heading("Losses")
        for stage, names in LOSSES.items():
            rows = read_metrics(self.run.metrics_path, stage)
            there = [name for name in names if rows and name in rows[0]]
            if there:
                self.picture(f"loss_{stage}", figures.losses(rows, there), f"Stage {stage}, {len(rows)} updates.")
            else:
                self.page.missing(f"Stage {stage} has not been trained yet.")

    def times(self) -> None:
        self.page.heading("Time")
        path = self.run.path / "timing.json"
        if not path.exists():
            return self.page.missing("No stage has run yet.")
        times = read_json(path)
        rows = [[stage, f"{t['wall_seconds']:.0f}", f"{t['cpu_seconds']:.0f}"] for stage, t in times.items()]
        total = [sum(t[key] for t in times.values()) for key in ("wall_seconds", "cpu_seconds")]
        self.page.table(["stage", "seconds", "CPU seconds"], [*rows, ["total", *(f"{t:.0f}" for t in total)]])


def write_report(run: Run) -> Path:
    """Writes `report/report.html` and the PNGs in it; returns its path."""
    return Report(run).write()


def evaluations(path: Path) -> dict[str, dict[str, Any]]:
    """What `evaluation/` holds, in the order of the table."""
    found = {file.stem: read_json(file) for file in sorted((path / "evaluation").glob("*.json"))}
    return {name: found[name] for name in (*ORDER, *sorted(found.keys() - set(ORDER))) if name in found}


def z_score(record: dict[str, Any], base: dict[str, Any]) -> float:
    """Difference of two mean returns in standard errors of the difference."""
    spread = math.hypot(record["stderr"], base["stderr"])
    return (record["mean_return"] - base["mean_return"]) / spread if spread > 0 else math.nan


def result_row(record: dict[str, Any], base: dict[str, Any] | None) -> list[str]:
    z = "" if base is None or record is base else f"{z_score(record, base):.1f}"
    return [
        record["policy"],
        str(record["episodes"]),
        f"{record['mean_return']:.3f}",
        f"{record['stderr']:.3f}",
        f"{100 * record['success']:.1f} %",
        f"{100 * record['success_low']:.1f} to {100 * record['success_high']:.1f} %",
        z,
    ]
