"""The report says what the files of a run say, whatever is there so far."""

import html
import io
import json
import re

import numpy as np
import pytest
from handmade import (
    LOSSES,
    RETURNS,
    add_evaluation,
    add_metrics,
    empty_run,
    finish,
    inspection,
    whole_run,
)
from PIL import Image

from actors.inspection import save_inspection
from cluster.reports import figures, strips
from cluster.reports.report import write_report
from cluster.reports.results import in_order, label, read_times, z_score
from cluster.run import Run
from dreamer4.errors import RunError
from dreamer4.files import write_json


def text_of(page: str) -> str:
    """What a reader sees: tags and pictures taken out."""
    body = page[page.index("<body>") :]
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body)))


def cells_of(page: str, name: str) -> list[str]:
    """The cells of the table row that begins with a name."""
    row = re.search(f"<tr><td>{re.escape(html.escape(name))}</td>(.*?)</tr>", page)
    assert row, f"no row '{name}'"
    return [html.unescape(cell) for cell in re.findall("<td>(.*?)</td>", row[1])]


def written(run: Run) -> str:
    return write_report(run).read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return whole_run(tmp_path_factory.mktemp("run") / "whole")


@pytest.fixture(scope="module")
def page(whole: Run) -> str:
    return written(whole)


def test_numbers_of_the_table_are_those_of_the_json(whole, page):
    for policy, name in (("bc", "BC"), ("pmpo", "PMPO"), ("filtered_bc", "filtered BC"), ("random", "random")):
        record = json.loads((whole.path / "evaluation" / f"{policy}.json").read_text())
        episodes, mean, success, interval, _ = cells_of(page, name)
        assert episodes == str(record["episodes"])
        assert mean == f"{record['mean_return']:.3f} ± {record['stderr']:.3f}"
        assert success == f"{100 * record['success']:.1f} %"
        assert interval == f"{100 * record['success_low']:.1f} % to {100 * record['success_high']:.1f} %"


def test_the_baseline_to_beat_is_the_best_one_of_the_run(tmp_path):
    run = whole_run(tmp_path / "run")
    assert "without imagination is filtered BC" in write_report(run).read_text()
    add_evaluation(run, "iql@0.003", RETURNS["filtered_bc"][0] + 0.01, 0.01, 77)
    assert "without imagination is IQL, temperature 0.003, with 38.5" in write_report(run).read_text()


def test_z_is_the_difference_in_standard_errors(page):
    assert cells_of(page, "PMPO")[-1] == f"{(0.787 + 0.413) / (0.060**2 + 0.025**2) ** 0.5:.1f}" == "18.5"
    assert cells_of(page, "BC")[-1] == "–"
    assert "18.5 standard errors" in text_of(page)


def test_world_model_is_shown_beside_its_baselines(page):
    assert cells_of(page, "reconstruction") == ["45.2 dB", "21.5 dB (mean image)"]
    cell, others = cells_of(page, "agent's cell after one step, 100 windows")
    assert cell.startswith("81.2 % (") and others.startswith("68.8 % (last frame), 100.0 %")
    assert cells_of(page, "of these, where the agent moved, 50 windows")[0] == "61.3 %"
    assert cells_of(page, "balls after one step") == ["1.90", "2.00 (real)"]
    assert cells_of(page, "action-shuffle ratio, in one step")[0] == "1.25"
    assert cells_of(page, "action-shuffle ratio, at the finest step size")[0] == "1.75"
    assert cells_of(page, "imagined frame 4")[0] == "20.2 dB"


def test_heads_and_returns_are_shown(page):
    assert cells_of(page, "0.889") == ["0.888", "0.009", "36"]
    assert cells_of(page, "0") == ["0.000", "0.027", "100"]  # and not -0.000
    assert cells_of(page, "recorded")[0] == "-0.038 ± 0.050"
    assert cells_of(page, "imagined by PMPO") == ["0.118 ± 0.037", "0.203", "0.179"]
    assert cells_of(page, "imagined by BC") == ["-0.157 ± 0.048", "–", "–"]
    assert "0.008 at 100 terminal frames, 0.996 at 101 others" in text_of(page)


def test_seconds_of_every_stage_and_their_sum(page):
    assert cells_of(page, "tokenizer") == ["20", "14", "14 s"]
    assert cells_of(page, "evaluate")[:2] == ["25", "30"]  # timed, but its record is of another kind
    assert cells_of(page, "all")[:2] == [f"{sum(10 * (i + 1) for i in range(8)) + 25:.0f}", "282"]


def test_finished_record_beats_the_clock_and_an_unfinished_stage_is_counted(tmp_path):
    run = empty_run(tmp_path / "run")
    finish(run, "tokenizer", 5.0, 6.0)
    clock = {"cpu_seconds": 4.0, "wall_seconds": 4.0}
    write_json(run.path / "timing.json", {"tokenizer": clock, "dynamics": clock})
    assert read_times(run.path)["tokenizer"]["cpu_seconds"] == 5
    assert list(read_times(run.path)) == ["tokenizer", "dynamics"]


def test_nothing_is_missing_in_a_whole_run(page):
    assert "Missing" not in text_of(page)


def test_empty_run_has_a_report_that_names_what_is_missing(tmp_path):
    text = text_of(written(empty_run(tmp_path / "run")))
    missing = text[text.index("Missing so far:") :]
    for name in ("stage collect", "stage policy", "stage filtered_bc", "evaluation of PMPO", "evaluation of random"):
        assert name in missing
    assert "stage horizon_1" not in missing  # a control that this run doesn't have
    for sentence in ("No policy has been evaluated yet.", "Stage inspect has not run yet.", "No stage has been timed"):
        assert sentence in text


@pytest.mark.parametrize("there", ["metrics", "evaluation", "inspection", "times", "half a line"])
def test_report_works_with_any_part_alone(tmp_path, there):
    run = empty_run(tmp_path / "run")
    if there == "metrics":
        add_metrics(run, "policy", imagined_return=None)  # never finite
        add_metrics(run, "tokenizer", steps=1)
        add_metrics(run, "dynamics", more="text")
    elif there == "evaluation":
        add_evaluation(run, "pmpo", 0.5, None, 1, of=1)
    elif there == "inspection":
        save_inspection(run.path / "inspection", inspection(cells=False))
    elif there == "times":
        finish(run, "collect", 1.0, 2.0)
    else:
        add_metrics(run, "tokenizer", steps=5)
        run.metrics_path.write_text(run.metrics_path.read_text() + '{"stage": "token')
    assert "Missing so far:" in text_of(written(run))


def test_inspection_without_numbers_is_shown_with_dashes(tmp_path):
    """What isn't finite is null in the JSON."""
    run, found = empty_run(tmp_path / "run"), inspection()
    found["reconstructions"]["psnr"] = float("inf")
    found["horizon"]["model_psnr"][-1] = np.nan
    found["agent_cell"]["one_step"]["moved_model"] = float("nan")
    found["action_shuffle"]["one_step"]["ratio"] = float("nan")
    del found["rewards"]["continues"]
    save_inspection(run.path / "inspection", found)
    page = written(run)
    assert cells_of(page, "reconstruction")[0] == "– dB"
    assert cells_of(page, "imagined frame 4")[0] == "– dB"
    assert cells_of(page, "action-shuffle ratio, in one step")[0] == "–"


def test_damaged_inspection_is_an_error_with_its_name(tmp_path):
    run = empty_run(tmp_path / "run")
    save_inspection(run.path / "inspection", inspection())
    (run.path / "inspection" / "arrays.npz").write_bytes(b"PK")
    with pytest.raises(RunError, match=r"arrays\.npz"):
        write_report(run)


def test_pictures_lie_beside_the_page_and_in_it(whole, page):
    folder = whole.path / "report"
    assert (folder / "report.html").read_text() == page
    names = {file.stem for file in folder.glob("*.png")}
    wanted = {"reconstructions", "strips", "horizon_psnr", "horizon_cells", "returns", "reward_calibration"}
    wanted |= {f"losses_{stage}" for stage in LOSSES}
    assert names == wanted | {f"{name}-dark" for name in wanted}
    assert page.count("data:image/png;base64,") == len(names)
    for file in folder.glob("*.png"):
        assert Image.open(file).size[0] > 100


def test_report_is_a_function_of_the_files(whole, page):
    """So a run that was interrupted ends with the same report."""
    first = {file.name: file.read_bytes() for file in (whole.path / "report").iterdir()}
    assert write_report(whole) == whole.path / "report" / "report.html"
    assert first == {file.name: file.read_bytes() for file in (whole.path / "report").iterdir()}


def test_order_of_policies_is_fixed_and_unknown_ones_come_last():
    assert in_order(["zeta", "pmpo", "alpha", "bc", "pmpo"]) == ["bc", "pmpo", "alpha", "zeta"]
    assert in_order(reversed(list(RETURNS))) == list(RETURNS)
    assert in_order(["pmpo", "iql@0.03", "iql@0.003", "iql"]) == ["iql", "iql@0.003", "iql@0.03", "pmpo"]
    assert [label(name) for name in ("iql", "iql@0.03", "mine")] == ["IQL", "IQL, temperature 0.03", "mine"]


def test_z_of_unknown_or_vanishing_errors():
    def record(mean: float, stderr: float | None) -> dict:
        return {"mean_return": mean, "stderr": stderr}

    assert z_score(record(3, 3), record(-2, 4)) == 1
    assert np.isnan(z_score(record(1, None), record(0, 1))) and np.isnan(z_score(record(1, float("nan")), record(0, 1)))
    assert z_score(record(1, 0), record(0, 0)) == float("inf") and z_score(record(1, 0), record(1, 0)) == 0


def test_curve_is_thinned_to_means_and_skips_what_is_not_a_number():
    steps, values = np.arange(1000.0), np.arange(1000.0)
    values[0] = np.nan
    thin_steps, thin_values = figures.thinned(steps, values, points=10)
    assert len(thin_steps) == 10 and np.array_equal(thin_steps, thin_values)
    assert thin_values.mean() == pytest.approx(500, abs=1)
    assert figures.thinned(steps[:1], values[:1])[0].size == 0


def test_strips_show_every_frame_enlarged_in_its_place():
    """Real above imagined, the context's last frame first; nothing beyond the end of the episode."""
    colour = np.arange(1, 5, dtype=np.uint8) * 50
    frames = np.broadcast_to(colour[None, :, None, None, None], (1, 4, 8, 8, 3))
    found = {
        "last": np.full((1, 8, 8, 3), 7, np.uint8),
        "real": frames,
        "imagined": frames + np.uint8(5),
        "known": np.array([[True, True, True, False]]),
    }
    picture = np.asarray(Image.open(io.BytesIO(strips.continuations(found).light)))
    side = 80
    for column, (above, below) in enumerate([(7, 7), (50, 55), (100, 105), (150, 155), (255, 255)]):
        left = strips.GAP + column * (side + strips.GAP) + side // 2
        top = strips.BAND + side // 2
        assert picture[top, left].tolist() == [above] * 3
        assert picture[top + side + strips.GAP, left].tolist() == [below] * 3


def test_large_frames_are_shrunk():
    frames = np.zeros((2, 360, 640, 3), np.uint8)
    found = {"real": frames, "reconstructed": frames}
    assert Image.open(io.BytesIO(strips.reconstructions(found).light)).size[0] < 700
