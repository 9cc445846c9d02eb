"""What a run has shown so far, on one page: `report/report.html`, with its pictures beside it as PNGs.

Reads files only, so it can be written at any moment, on any machine; what isn't there yet is named as missing.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actors.inspection import load_inspection
from cluster.config import CONTROLS
from cluster.reports import figures, strips
from cluster.reports.figures import Picture
from cluster.reports.page import details, page, paragraph, pictures, section, table
from cluster.reports.results import STAGES, baseline, finished, label, read_evaluations, read_times, z_score
from cluster.run import Run
from cluster.settings import to_json
from cluster.telemetry import duration, read_metrics
from dreamer4.files import write_atomic
from dreamer4.metrics import wilson

MISSING = "–"


def write_report(run: Run) -> Path:
    """Writes page and pictures; returns the page.

    Raises:
        RunError: a file of the run is damaged, or the folder can't be written.
    """
    report = Report(run)
    drawn: list[Picture] = []
    sections = [report.summary(), report.policies()]
    for title, text, shown in (report.imagination(), report.returns(), report.heads(), report.losses()):
        sections.append(section(title, *text, *([pictures(shown)] if shown else [])))
        drawn += shown
    sections += [report.costs(), report.config()]
    for picture in drawn:
        write_atomic(run.path / "report" / f"{picture.name}.png", picture.light)
        write_atomic(run.path / "report" / f"{picture.name}-dark.png", picture.dark)
    path = run.path / "report" / "report.html"
    write_atomic(path, page(f"{run.path.name}: {run.config.env}", sections).encode())
    return path


Part = tuple[str, list[str], list[Picture]]  # title, texts, pictures


class Report:
    """A run's files, and the parts of the page that are made of them."""

    def __init__(self, run: Run):
        self.run = run
        self.evaluations = read_evaluations(run.path)
        self.metrics = read_metrics(run.metrics_path)
        folder = run.path / "inspection"
        self.inspection = load_inspection(folder) if (folder / "inspection.json").exists() else {}

    def summary(self) -> str:
        """The result in a sentence, and what is missing."""
        texts = []
        pmpo, bc = self.evaluations.get("pmpo"), self.evaluations.get("bc")
        if pmpo and bc:
            texts.append(
                f"Trained in its own imagination, the policy reaches {_success(pmpo)} success and a mean return of "
                f"{_return(pmpo)} in the real environment; behaviour cloning, which it started from, {_success(bc)} "
                f"and {_return(bc)}. The difference is {_number(z_score(pmpo, bc), '.1f')} standard errors."
            )
        rivals = {name: record for name, record in self.evaluations.items() if baseline(name)}
        if pmpo and bc and rivals:
            best = max(rivals, key=lambda name: rivals[name]["mean_return"])
            texts.append(
                f"The best without imagination is {label(best)}, with {_success(rivals[best])} and "
                f"{_return(rivals[best])}: the baseline to beat before crediting imagination."
            )
        missing = self._missing()
        parts = [paragraph(text, "lead" if i == 0 else "") for i, text in enumerate(texts)]
        if missing:
            parts.append(paragraph(f"Missing so far: {', '.join(missing)}.", "soft"))
        return "\n".join(parts)

    def _missing(self) -> list[str]:
        controls = self.run.config.controls
        stages = [stage for stage in STAGES if stage in controls or stage not in CONTROLS]
        missing = [f"stage {stage}" for stage in stages if finished(self.run.path, stage) is None]
        expected = [name for name in self.run.config.judged if name not in self.evaluations]
        return missing + [f"evaluation of {label(name)}" for name in expected]

    def policies(self) -> str:
        """The final table."""
        if not self.evaluations:
            return section("Policies in the real environment", paragraph("No policy has been evaluated yet.", "soft"))
        bc = self.evaluations.get("bc")
        rows = []
        for name, record in self.evaluations.items():
            z = _number(z_score(record, bc), ".1f") if bc is not None and name != "bc" else MISSING
            low, high = (_percent(record[key]) for key in ("success_low", "success_high"))
            numbers = [str(record["episodes"]), _return(record), _percent(record["success"]), f"{low} to {high}", z]
            rows.append([label(name), *numbers])
        head = ["policy", "episodes", "mean return", "success", "95 % interval", "z against BC"]
        note = (
            "Sampled actions. Mean return ± standard error over episodes; Wilson interval of the success rate; z is "
            "the difference of mean returns to BC in standard errors."
        )
        return section("Policies in the real environment", table(head, rows), paragraph(note, "soft"))

    def imagination(self) -> Part:
        """Tokenizer and world model on validation episodes."""
        title, found = "World model on validation episodes", self.inspection
        if not found:
            return title, [paragraph("Stage inspect has not run yet.", "soft")], []
        rows, horizon = [], found["horizon"]
        recon, shuffle, cells = found["reconstructions"], found["action_shuffle"], found["agent_cell"]
        rows.append(["reconstruction", _decibels(recon["psnr"]), f"{_decibels(recon['mean_image_psnr'])} (mean image)"])
        for step in sorted({0, len(horizon["n"]) - 1}):
            model, copy, mean = (horizon[f"{name}_psnr"][step] for name in ("model", "copy", "mean_image"))
            floor = f"{_decibels(copy)} (last frame), {_decibels(mean)} (mean image)"
            rows.append([f"imagined frame {step + 1}", _decibels(model), floor])
        if cells:
            rows += _cell_rows(cells["one_step"])
        for name, text in (("one_step", "in one step"), ("finest", "at the finest step size")):
            ratios = [_number(shuffle[name][key], ".2f") for key in ("ratio", "ratio_changed")]
            note = f"1 (deaf to actions); {ratios[1]} where the action is another one"
            rows.append([f"action-shuffle ratio, {text}", ratios[0], note])
        drawn = [strips.reconstructions(recon), strips.continuations(horizon), figures.horizon_psnr(horizon)]
        if cells:
            drawn.append(figures.horizon_cells(cells["horizon"]))
        return title, [table(["", "model", "to compare with"], rows)], drawn

    def returns(self) -> Part:
        """Imagined against real returns."""
        title, texts, drawn = "Imagined against real return", [], []
        rows = [row for row in self.metrics if row["stage"] == "policy"]
        if rows:
            real = (self.evaluations.get(name) for name in ("bc", "pmpo"))
            drawn.append(figures.returns_over_updates(rows, *real))
        else:
            texts.append(paragraph("Stage policy has not run yet.", "soft"))
        found = self.inspection.get("rewards", {}).get("returns")
        if found:
            lines = [["recorded", _with_error(**found["recorded"]), MISSING, MISSING]]
            for name, one in found["imagined"].items():
                more = [_number(one.get(key), ".3f") for key in ("bootstrapped", "value")]
                lines.append([f"imagined by {label(name)}", _with_error(one["mean"], one["stderr"]), *more])
            texts.append(table(["from the same contexts", "return", "with value at the end", "value"], lines))
            note = (
                f"Discounted by {found['discount']:g} over {found['horizon']} steps, from {found['n']} contexts of "
                "validation episodes. What BC imagines should be near what was recorded."
            )
            texts.append(paragraph(note, "soft"))
        return title, texts, drawn

    def heads(self) -> Part:
        """Reward and continue heads."""
        title, found = "Reward and continue heads", self.inspection.get("rewards")
        if not found:
            return title, [paragraph("Stage inspect has not run yet.", "soft")], []
        calibration, texts = found["calibration"], []
        groups = zip(*(calibration[key] for key in ("true", "predicted", "spread", "n")), strict=True)
        rows = [[f"{true:.3g}", f"{mean:z.3f}", f"{spread:.3f}", str(n)] for true, mean, spread, n in groups]
        texts.append(table(["true reward", "mean prediction", "spread", "frames"], rows))
        if "continues" in found:
            goes_on = found["continues"]
            terminal, other = (_number(goes_on[key], ".3f") for key in ("terminal", "other"))
            text = (
                f"Predicted probability to go on: {terminal} at {goes_on['n_terminal']} terminal frames, {other} at "
                f"{goes_on['n_other']} others."
            )
            texts.append(paragraph(text))
        return title, texts, [figures.reward_calibration(calibration)]

    def losses(self) -> Part:
        """One picture per trained stage."""
        drawn = []
        for stage in figures.LOSSES:
            picture = figures.losses(stage, [row for row in self.metrics if row["stage"] == stage])
            drawn += [picture] if picture else []
        texts = [] if drawn else [paragraph("No stage has been trained yet.", "soft")]
        return "Losses", texts, drawn

    def costs(self) -> str:
        """Seconds per stage."""
        times = read_times(self.run.path)
        if not times:
            return section("Cost", paragraph("No stage has been timed yet.", "soft"))
        rows = [_time_row(stage, one["cpu_seconds"], one["wall_seconds"]) for stage, one in times.items()]
        sums = (sum(one[key] for one in times.values()) for key in ("cpu_seconds", "wall_seconds"))
        head = ["stage", "CPU seconds", "wall-clock seconds", ""]
        note = "Over all starts of the run; processes of a stage work side by side, so either number may be larger."
        return section("Cost", table(head, [*rows, _time_row("all", *sums)]), paragraph(note, "soft"))

    def config(self) -> str:
        return section("Configuration", details("All keys", json.dumps(to_json(self.run.config), indent=2)))


def _cell_rows(found: Mapping[str, Any]) -> list[list[str]]:
    n, moved = int(found["n"]), int(found["moved_n"])
    low, high = wilson(round(found["model"] * n), n)
    model = f"{_percent(found['model'])} ({_percent(low)} to {_percent(high)})"
    others = (
        f"{_percent(found['copy'])} (last frame), {_percent(found['tokenizer'])} (real frame through the tokenizer)"
    )
    rows = [[f"agent's cell after one step, {n} windows", model, others]]
    rows.append(
        [f"of these, where the agent moved, {moved} windows", _percent(found["moved_model"]), "0.0 % (last frame)"]
    )
    balls = f"{_number(found['real_balls'], '.2f')} (real)"
    return [*rows, ["balls after one step", _number(found["imagined_balls"], ".2f"), balls]]


def _time_row(stage: str, cpu: float, wall: float) -> list[str]:
    return [stage, f"{cpu:.0f}", f"{wall:.0f}", duration(wall)]


def _return(record: Mapping[str, Any]) -> str:
    return _with_error(record["mean_return"], record["stderr"])


def _success(record: Mapping[str, Any]) -> str:
    return _percent(record["success"])


def _with_error(mean: float, stderr: float | None) -> str:
    known = stderr is not None and math.isfinite(stderr)
    return f"{mean:z.3f} ± {stderr:.3f}" if known else f"{mean:z.3f}"


def _percent(share: float | None) -> str:
    return f"{_number(None if share is None else 100 * share, '.1f')} %"


def _decibels(value: float | None) -> str:
    return f"{_number(value, '.1f')} dB"


def _number(value: float | None, form: str) -> str:
    """A dash where there is no number; what JSON can't say (infinite, not a number) is null there."""
    return MISSING if value is None or math.isnan(value) else f"{value:z{form}}"  # z: no -0.000
