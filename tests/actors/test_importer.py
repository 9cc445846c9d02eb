import hashlib
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from minari_files import write_endless
from recordings import line, stamped, stamps, write_film, write_lerobot, write_lines, write_sums, write_vpt

from actors.importer import Job, Report, SourceImporter, finished_report, gather, report_path
from dreamer4.data.episodes import EpisodeDataset
from dreamer4.data.importers.canvas import Canvas
from dreamer4.data.importers.importer import Options
from dreamer4.errors import ConfigError, DataError

SMALL = Options(canvas=Canvas(32, 48))


def recordings(folder: Path, count: int = 4) -> Path:
    for number in range(count):
        write_vpt(folder, [line(t) for t in range(20 + number)], name=f"r-{number}")
    return folder


def job(folder: Path, keep_going: bool = False) -> Job:
    return Job("vpt", folder / "in", SMALL, folder / "out", "zstd", keep_going)


def run(work: Job) -> list[Report]:
    importer = SourceImporter(work)
    return [importer.make(index, (source,))[0] for index, source in enumerate(importer.importer.sources())]


def digests(folder: Path) -> dict[str, str]:
    """Of all files of a dataset."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".import.lock"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_sources_become_a_dataset_in_their_order(tmp_path):
    """The number of episodes per shard is not known before: the manifest numbers them."""
    recordings(tmp_path / "in", 3)
    paused = [line(t) for t in range(10)] + [line(t) for t in range(50, 60)]
    write_vpt(tmp_path / "in", paused, name="r-0")
    manifest = gather(tmp_path / "out", run(job(tmp_path)))
    dataset = EpisodeDataset.open(tmp_path / "out", verify=True)
    assert [shard.first_episode for shard in manifest.shards] == [0, 2, 3]
    assert dataset.lengths_E.tolist() == [10, 10, 21, 22]
    assert [dataset.episode(number).source for number in range(4)] == ["r-0", "r-0", "r-1", "r-2"]


def test_frames_and_actions_in_the_dataset_are_those_of_the_recording(tmp_path):
    acts = write_lerobot(tmp_path / "in", (33, 9), codec="libx264rgb")
    work = Job("lerobot", tmp_path / "in", Options(), tmp_path / "out", "zstd")
    importer = SourceImporter(work)
    gather(work.folder, [importer.make(0, tuple(importer.importer.sources()))[0]])
    dataset = EpisodeDataset.open(work.folder, verify=True)
    for number, length in enumerate((33, 9)):
        episode = dataset.episode(number)
        assert np.array_equal(episode.frames_THWC, np.stack([stamped(64 * number + t) for t in range(length)]))
        assert np.array_equal(episode.act_out_TA[:-1], acts[number][:-1])


def test_large_frames_may_be_kept_as_film(tmp_path):
    write_film(tmp_path / "in" / "a.mp4", (stamped(t) for t in range(70)))
    work = Job("video", tmp_path / "in", Options(fps=Fraction(10)), tmp_path / "out", "h264")
    gather(work.folder, [SourceImporter(work).make(0, ("a.mp4",))[0]])
    dataset = EpisodeDataset.open(work.folder, verify=True)
    assert stamps(dataset.episode(0).frames_THWC) == list(range(0, 70, 2))
    assert not dataset.episode(0).act_known_T.any()


def test_what_is_done_is_not_done_again_and_a_lost_file_is(tmp_path):
    recordings(tmp_path / "in")
    work = job(tmp_path)
    run(work)
    before = digests(tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.arrow")}
    run(work)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    (tmp_path / "out" / "shard-00002.arrow").write_bytes(b"cut")
    assert finished_report(work.folder, 2, ("r-2",)) is None
    run(work)
    assert digests(tmp_path / "out") == before
    assert finished_report(work.folder, 2, ("another",)) is None, "negative control: a shard of other sources"


@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_source_with_a_fault_stops_or_is_left_out(tmp_path, at):
    recordings(tmp_path / "in")
    lines = [line(t) for t in range(20)]
    del lines[15]["mouse"]
    write_lines(tmp_path / "in" / f"r-{at}.jsonl", lines)
    with pytest.raises(DataError, match=f"source 'r-{at}': .*r-{at}.jsonl' row 16 lacks 'mouse'"):
        run(job(tmp_path))
    reports = run(job(tmp_path, keep_going=True))
    assert [report.episodes for report in reports] == [int(number != at) for number in range(4)]
    assert "row 16 lacks 'mouse'" in reports[at].quarantined[0]["error"]
    assert gather(tmp_path / "out", reports).episodes == 3


def test_a_fault_in_a_shard_of_several_sources_takes_only_its_own_away(tmp_path):
    """Also what was written of it before the fault was met: a source is whole in the dataset, or not at all."""
    recordings(tmp_path / "in")
    lines = [line(t) for t in range(10)] + [line(t) for t in range(50, 60)]
    del lines[15]["mouse"]
    write_lines(tmp_path / "in" / "r-1.jsonl", lines)
    importer = SourceImporter(job(tmp_path, keep_going=True))
    report, _ = importer.make(0, ("r-0", "r-1", "r-2", "r-3"))
    gather(tmp_path / "out", [report])
    dataset = EpisodeDataset.open(tmp_path / "out", verify=True)
    assert [dataset.episode(number).source for number in range(3)] == ["r-0", "r-2", "r-3"]
    assert [fault["source"] for fault in report.quarantined] == ["r-1"]
    assert Report.read(report_path(tmp_path / "out", 0)) == report


def test_a_recording_whose_sum_is_another_is_a_fault(tmp_path):
    """A number in a line of JSON has changed, which the line itself can't tell."""
    folder = recordings(tmp_path / "in", 2)
    sums = write_sums(folder)
    write_lines(folder / "r-1.jsonl", [line(t, yaw=1.5 if t == 9 else 0.0) for t in range(21)])
    with pytest.raises(DataError, match=r"source 'r-1': .*r-1.jsonl' has other bytes than"):
        run(job(tmp_path))
    assert [report.episodes for report in run(job(tmp_path, keep_going=True))] == [1, 0]
    sums.unlink()
    assert SourceImporter(replace(job(tmp_path), folder=tmp_path / "other")).make(0, ("r-1",))[0].episodes == 1


def test_a_dataset_of_faults_only_is_none(tmp_path):
    for number in range(2):
        write_film(tmp_path / "in" / f"r-{number}.mp4", [stamped(0)] * 2)
    with pytest.raises(DataError, match="nothing was imported: all 2 sources have a fault"):
        gather(tmp_path / "out", run(job(tmp_path, keep_going=True)))


def test_unknown_families_and_empty_places_are_named(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'minari'"):
        SourceImporter(Job("minary", tmp_path, SMALL, tmp_path / "out"))
    with pytest.raises(DataError, match="there is nothing at"):
        SourceImporter(Job("vpt", tmp_path / "nowhere", SMALL, tmp_path / "out"))


def test_an_episode_that_is_read_for_ever_is_left_out(tmp_path):
    """The stand-in for a damaged HDF5 file blocks inside the HDF5 library. Negative control: without `keep_going`."""
    sources = tuple(f"episode-{number:06d}" for number in range(3))
    job = Job("minari", write_endless(tmp_path / "in"), Options(patience=1), tmp_path / "out", keep_going=True)
    report, _ = SourceImporter(job).make(0, sources)
    assert report.episodes == 2
    (fault,) = report.quarantined
    assert fault["source"] == "episode-000001" and "didn't end within 1 s" in fault["error"]
    with pytest.raises(DataError, match="source 'episode-000001'"):
        SourceImporter(replace(job, folder=tmp_path / "other", keep_going=False)).make(0, sources)
