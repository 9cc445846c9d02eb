from pathlib import Path

import numpy as np
import pytest
from handmade import RETURNS, add_evaluation, empty_run, finish, inspection, whole_run

from actors.inspection import save_inspection
from cluster.reports.compare import compare
from dreamer4.errors import RunError
from dreamer4.files import write_json


def rows(text: str) -> dict[str, list[str]]:
    """Cells of every table row, by the first one; of equal names the first table's."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("| "):
            name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
            found.setdefault(name, cells)
    return found


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """Seeds 0 to 2, whose returns differ by 0, 0.03 and 0.06."""
    return [whole_run(tmp_path / f"run{seed}", seed, 0.03 * seed).path for seed in range(3)]


def test_numbers_are_those_of_the_runs(three):
    found = rows(compare(three))
    assert found["policy"] == ["seed 0", "seed 1", "seed 2", "mean over runs"]
    for policy, name in (("pmpo", "PMPO"), ("bc", "BC"), ("filtered_bc", "filtered BC")):
        mean, stderr, successes = RETURNS[policy]
        for seed in range(3):
            assert found[name][seed] == f"{mean + 0.03 * seed:.3f} ± {stderr:.3f} ({successes / 2:.1f} %)"
        over_runs = np.array([mean, mean + 0.03, mean + 0.06])
        error = over_runs.std(ddof=1) / 3**0.5
        assert found[name][3] == f"{over_runs.mean():.3f} ± {error:.3f} ({successes / 2:.1f} %)"


def test_differences_are_in_standard_errors(three):
    z = (0.787 + 0.413) / (0.060**2 + 0.025**2) ** 0.5
    assert rows(compare(three))["PMPO − BC"] == [f"+1.200, z {z:.1f}"] * 3
    assert "random − BC" not in rows(compare(three))


def test_seconds_per_stage_and_in_all(three):
    found = rows(compare(three))
    assert found["tokenizer"] == ["20"] * 3 and found["evaluate"] == ["25"] * 3
    assert found["all"] == ["385"] * 3
    assert "horizon_1" not in found


def test_world_models_are_compared(three):
    found = rows(compare(three))
    assert found["reconstruction"] == ["45.2 dB"] * 3
    assert found["agent's cell after one step"] == ["0.812"] * 3
    assert found["the same, last frame repeated"] == ["0.688"] * 3
    assert found["action-shuffle ratio, one step"] == ["1.25"] * 3


def test_every_line_of_a_table_has_as_many_cells(three):
    for block in compare(three).split("\n\n"):
        counts = {line.count("|") for line in block.splitlines() if line.startswith("|")}
        assert len(counts) <= 1


def test_what_a_run_does_not_have_is_a_dash(tmp_path):
    whole, other = whole_run(tmp_path / "whole"), empty_run(tmp_path / "other", seed=1)
    add_evaluation(other, "horizon_1", 0.6, 0.1, 150)
    finish(other, "tokenizer", 33.4, 1.0)
    write_json(other.path / "timing.json", {"dynamics": {"cpu_seconds": 12.0, "wall_seconds": 1.0}})
    save_inspection(other.path / "inspection", inspection(cells=False))
    found = rows(compare([whole.path, other.path]))
    assert found["PMPO"][1] == "–" and found["PMPO, horizon 1"][0] == "–"
    assert found["PMPO, horizon 1"][1:] == ["0.600 ± 0.100 (75.0 %)", "0.600 (75.0 %) of 1"], "of how many runs"
    assert found["PMPO − BC"][1] == "–" and "PMPO, horizon 1 − BC" not in found
    assert found["tokenizer"] == ["20", "33"] and found["dynamics"] == ["40", "12 (unfinished)"]
    assert found["agent's cell after one step"] == ["0.812", "–"]


def test_runs_of_one_seed_are_told_apart_by_their_folders(tmp_path):
    paths = [whole_run(tmp_path / name).path for name in ("wide", "deep")]
    assert rows(compare(paths))["policy"][:2] == ["wide", "deep"]
    paths = [whole_run(tmp_path / parent / "run").path for parent in ("old", "new")]
    assert rows(compare(paths))["policy"][:2] == [str(path) for path in paths]


def test_run_that_has_just_begun_has_tables_without_rows(tmp_path):
    text = compare([empty_run(tmp_path / "run").path])
    for sentence in ("No policy has been evaluated", "No world model has been inspected", "No stage has been timed"):
        assert sentence in text
    assert rows(text) == {}


def test_path_without_a_run_is_named(tmp_path, three):
    with pytest.raises(RunError, match=r"no run in .*nothing"):
        compare([*three, tmp_path / "nothing"])


def test_lead_of_pmpo_is_taken_run_by_run(three):
    """The runs' returns differ by as much for every policy, so the lead is the same and its error 0: no ratio."""
    last = compare(three).split("PMPO against the others")[1]
    mean = RETURNS["pmpo"][0] - RETURNS["filtered_bc"][0]
    assert rows(last)["PMPO − filtered BC"][0].startswith(f"{mean:.3f} ± 0.000")
    assert rows(last)["PMPO − filtered BC"][3:] == ["3", "3"] and "PMPO − PMPO" not in rows(last)
    alone = compare(three[:1]).split("PMPO against the others")[1]
    assert rows(alone)["PMPO − BC"][:2] == [f"{RETURNS['pmpo'][0] - RETURNS['bc'][0]:.3f}", "–"]


def test_each_run_s_best_rival_is_compared_too(tmp_path):
    """Which one is best may differ from run to run; IQL's are those of all temperatures."""
    runs = []
    for seed, (filtered, iql, warm) in enumerate([(0.5, 0.2, 0.4), (-0.5, 0.6, 0.1)]):
        run = empty_run(tmp_path / f"run{seed}", seed)
        for policy, mean in (("pmpo", 0.9), ("bc", 0.1), ("filtered_bc", filtered), ("iql", iql), ("iql@0.3", warm)):
            add_evaluation(run, policy, mean, 0.01, 100)
        runs.append(run.path)
    found = rows(compare(runs).split("PMPO against the others")[1])
    assert found["PMPO − each run's best imitation"][0].startswith("0.600 ± 0.200"), "0.9 - 0.5 and 0.9 - 0.1"
    assert found["PMPO − each run's best IQL"][0].startswith("0.400 ± 0.100"), "0.9 - 0.4 and 0.9 - 0.6"
    assert found["PMPO − IQL"][0].startswith("0.500 ± 0.200")
    assert found["PMPO − IQL"][1] == "–", "an error of two runs is luck"


def test_leads_of_three_runs_are_told_in_their_standard_errors_and_each_quantity_has_its_own_best_rival(tmp_path):
    runs = []
    for seed, mean in enumerate((0.7, 0.8, 0.9)):
        run = empty_run(tmp_path / f"run{seed}", seed)
        for policy, of, wins in (("pmpo", mean, 90), ("iql", 0.2, 60), ("iql@0.3", 0.3, 50)):
            add_evaluation(run, policy, of, 0.01, wins)
        runs.append(run.path)
    found = rows(compare(runs).split("PMPO against the others")[1])
    best = found["PMPO − each run's best IQL"]
    assert best == ["0.500 ± 0.058", f"{0.5 / (0.1 / 3**0.5):.1f}", "+15.0", "3", "3"], "of 200 episodes each"


def test_what_diagnose_found_is_compared(three):
    shares = {"pose": 0.98, "items": 0.97, "kinds": 0.96}
    found = {"recorded": {"1": shares, "16": {**shares, "pose": 0.9}}, "ranking": {"whole_episodes": 0.95}}
    write_json(three[1] / "diagnosis" / "diagnosis.json", found)
    tables = rows(compare(three))
    assert tables["agent right after 1 recorded action"] == ["–", "0.980", "–"]
    assert tables["agent right after 16 recorded actions"] == ["–", "0.900", "–"]
    assert tables["kinds of items right after 16 recorded actions"][1] == "0.960"
    assert tables["rank correlation of imagined and real returns"][1] == "0.95"
    assert "no recording's" not in compare(three)


def test_successes_where_nobody_has_started_before(three):
    found = {"new_starts": {"pmpo": {"n": 84, "success": 0.25}}}
    write_json(three[1] / "diagnosis" / "diagnosis.json", found)
    told = compare(three).split("no recording's")[1]
    assert rows(told)["PMPO"] == ["–", "25.0 % (84)", "–"]
