"""Imports as users start them: interrupted, repeated, in parallel, with faults."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mortal import MortalImporter
from recordings import line, stamped, write_film, write_vpt

from cluster.data import importing
from cluster.data.import_command import read_names
from cluster.main import main
from dreamer4.data.episodes import EpisodeDataset

pytestmark = pytest.mark.usefixtures("interrupts")

ROOT = Path(__file__).resolve().parents[2]


def recordings(folder: Path, count: int = 6) -> Path:
    for number in range(count):
        lines = [line(t, keys=["key.keyboard.w"] * (t % 3 == 0)) for t in range(150)]
        write_vpt(folder / "data" / "6.13", lines, name=f"r-{number}")
    return folder


def command(source: Path, out: Path, *more: str, workers: int = 1) -> list[str]:
    given = ["--source", str(source), "--out", str(out), "--frame", "32x48", "--codec", "zstd"]
    return ["data", "import", "vpt", *given, "--workers", str(workers), *more]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.slow
def test_an_import_that_is_killed_goes_on_and_ends_in_the_same_bytes(tmp_path):
    """Killed without warning after some shards. Negative control: before it goes on, the dataset isn't there."""
    source = recordings(tmp_path / "in")
    assert main(command(source, tmp_path / "whole")) == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "cluster.main", *command(source, tmp_path / "killed")],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    third = tmp_path / "killed" / "import" / "shard-00002.json"
    while not third.exists():
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "manifest.json").exists()
    kept = third.stat().st_mtime_ns
    assert main(command(source, tmp_path / "killed")) == 0
    assert third.stat().st_mtime_ns == kept, "what was done is kept"
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_second_start_does_nothing_and_new_sources_are_added(tmp_path, capsys):
    source, out = recordings(tmp_path / "in", 2), tmp_path / "out"
    assert main(command(source, out)) == 0
    before = contents(out)
    assert main(command(source, out)) == 0
    assert "new_frames 0" in capsys.readouterr().out
    assert contents(out) == before
    write_vpt(source / "data" / "6.13", [line(t) for t in range(9)], name="a-new")
    assert main(command(source, out, "--json", str(tmp_path / "counts.json"))) == 0
    assert json.loads((tmp_path / "counts.json").read_text())["new_frames"] == 9
    dataset = EpisodeDataset.open(out, verify=True)
    names = [dataset.episode(number).source for number in range(3)]
    assert [name.removeprefix("data/6.13/") for name in names] == ["r-0", "r-1", "a-new"]


def test_sources_with_faults_are_reported_and_the_exit_status_tells(tmp_path, capsys):
    source, out = recordings(tmp_path / "in", 3), tmp_path / "out"
    bad = source / "data" / "6.13" / "r-1.mp4"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:1000])
    assert main(command(source, out)) == 2
    assert "r-1.mp4' is damaged" in capsys.readouterr().err
    assert not (out / "manifest.json").exists()
    with pytest.raises(SystemExit) as end:
        main(command(source, out, "--keep-going"))
    assert end.value.code == 1
    assert "1 sources have a fault" in capsys.readouterr().err
    (fault,) = [json.loads(row) for row in (out / "quarantine.jsonl").read_text().splitlines()]
    assert fault["source"] == "data/6.13/r-1"
    assert EpisodeDataset.open(out).episode_count == 2
    bad.write_bytes(whole)
    assert main(command(source, out, "--keep-going", "--retry")) == 0
    assert EpisodeDataset.open(out, verify=True).episode_count == 3
    assert (out / "quarantine.jsonl").read_text() == ""


def test_other_options_and_foreign_folders_are_refused(tmp_path, capsys):
    source, out = recordings(tmp_path / "in", 1), tmp_path / "out"
    assert main(command(source, out)) == 0
    assert main(command(source, out, "--camera", "30,5,15")) == 2
    assert "imported with other options (actions, rules" in capsys.readouterr().err
    (out / "import.json").unlink()
    assert main(command(source, out)) == 2
    assert "was not imported" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--frame", "64"], "--frame is height x width"),
        (["--frame", "0x64"], "impossible"),
        (["--fps", "zero"], "--fps is a number"),
        (["--fps", "10"], "--fps is for films without actions"),
        (["--camera", "10,10"], "--camera is LIMIT,MU,BINS"),
        (["--camera", "10,10,10"], "bins odd"),
        (["--workers", "0"], "--workers must be at least 1"),
        (["--exclude", "nowhere.txt"], "can't read names"),
        (["--codec", "jpeg"], "jpeg"),
        (["seed=1"], "takes no settings"),
    ],
)
def test_a_users_mistake_is_one_sentence_and_leaves_no_dataset(tmp_path, capsys, more, message):
    write_vpt(tmp_path / "in", [line(t) for t in range(3)])
    assert main(command(tmp_path / "in", tmp_path / "out", *more)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_names_to_exclude_are_lines_or_json(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n two \n")
    (tmp_path / "b.json").write_text('["one", "two"]')
    assert read_names(tmp_path / "a.txt") == read_names(tmp_path / "b.json") == {"one", "two"}


def test_films_are_imported_with_the_actions_of_the_labelled_recordings(tmp_path):
    source = recordings(tmp_path / "in", 1)
    assert main(command(source, tmp_path / "labelled")) == 0
    write_film(tmp_path / "films" / "a.mp4", (stamped(t) for t in range(30)))
    given = ["--source", str(tmp_path / "films"), "--out", str(tmp_path / "films-out"), "--workers", "1"]
    like = ["--like", str(tmp_path / "labelled"), "--frame", "32x48", "--codec", "zstd"]
    assert main(["data", "import", "video", *given, *like]) == 0
    labelled, films = (EpisodeDataset.open(tmp_path / name) for name in ("labelled", "films-out"))
    assert films.manifest.recording == labelled.manifest.recording
    assert not films.episode(0).act_known_T.any()
    assert labelled.episode(0).act_known_T.any()


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_processes_side_by_side_make_the_dataset_of_one_and_a_lost_one_is_replaced(
    tmp_path, ray_up, capfd, monkeypatch
):
    source = recordings(tmp_path / "in", 8)
    assert main(command(source, tmp_path / "one")) == 0
    usual, built = importing.worker, []

    def first_one_dies(cls, **options):
        built.append(cls)
        return usual(MortalImporter if len(built) == 1 else cls, **options)

    monkeypatch.setattr(importing, "worker", first_one_dies)
    assert main(command(source, tmp_path / "two", workers=2)) == 0
    assert "its process was lost" in capfd.readouterr().err
    assert len(built) == 3
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
