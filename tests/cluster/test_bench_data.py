"""`dreamer4 bench data`, on little video: what it measures is what it says."""

import json

import numpy as np
import pytest

from cluster.bench import data as bench_data
from cluster.bench.readers import LENGTH, panning, pixel_art, plain_mp4, tar_stream
from cluster.main import main
from dreamer4.data.codecs import Codec
from dreamer4.data.episodes import EpisodeDataset

pytestmark = pytest.mark.usefixtures("interrupts")


@pytest.mark.slow
def test_everything_is_measured_in_one_run_and_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_data, "FRAMES", {"64": 200, "360": 100})
    monkeypatch.setattr(
        bench_data,
        "bench_data",
        lambda whole=bench_data.bench_data: whole(turns=1, seconds=0, equivalent=10**8, batches=2),
    )
    file = tmp_path / "record.json"
    assert main(["bench", "data", "--json", str(file)]) == 0
    record, shown = json.loads(file.read_text()), capsys.readouterr().out
    for size in ("64", "360"):
        rates = {name: one["clips_per_core_s"] for name, one in record[f"readers_{size}"].items()}
        own = max(rate for name, rate in rates.items() if name.startswith("ours"))
        others = max(rate for name, rate in rates.items() if not name.startswith("ours"))
        assert record[f"clips_per_core_s_{size}"] == own
        assert record[f"over_fastest_alternative_{size}"] == pytest.approx(own / others)
        assert len(rates) >= 4 and all(name in shown for name in rates)
    assert 50 < record["peak_rss_mb"] < 1024


def test_alternatives_give_the_frames_that_they_are_asked_for(tmp_path):
    """A reader that skipped frames would be quick for the wrong reason."""
    video = pixel_art(200)
    places = {frame.tobytes(): number for number, frame in enumerate(video)}
    draw = tar_stream(tmp_path / "npy.tar", video, "npy")
    for start in (0, 64, 128, 0):
        clip = draw()[0].numpy()
        assert [places[frame.tobytes()] for frame in clip] == list(range(start, start + LENGTH))
    smooth = panning(100, 64, 96)
    for draw in (plain_mp4(tmp_path / "film.mp4", smooth), tar_stream(tmp_path / "mp4.tar", smooth, "mp4")):
        clip = draw()[0].numpy().astype(np.float32)
        errors = [np.abs(clip - smooth[start : start + LENGTH]).mean() for start in range(100 - LENGTH + 1)]
        assert min(errors) < 4 and sorted(errors)[1] > 1.2 * min(errors)


def test_a_shard_repeated_to_any_size_is_a_dataset(tmp_path):
    clips = bench_data.write_ours(tmp_path, pixel_art(130), Codec("zstd"), episode=50)
    size = 20 * clips.dataset.manifest.shards[0].bytes
    assert bench_data.repeat_shards(tmp_path, size) == 20 * 130
    data = EpisodeDataset.open(tmp_path)
    assert data.episode_count == 60 and sum(shard.bytes for shard in data.manifest.shards) >= size
    assert np.array_equal(data.video(19 * 130, 20 * 130), pixel_art(130))
