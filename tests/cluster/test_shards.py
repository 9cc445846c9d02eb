"""Recordings and latents are made shard by shard, by actors that may be lost."""

from pathlib import Path

import numpy as np
import pytest
from faulty import Mortal
from fragile import FragileWriter
from trained import record

from actors.encoder import Encoder
from cluster import stages
from cluster.config import configure
from cluster.data.dealing import LOSSES
from cluster.models import RunData, load_tokenizer, new_tokenizer
from cluster.placement import worker
from cluster.presets import smoke
from cluster.run import Run
from cluster.stages import encode, make_shards
from dreamer4.errors import RunError

pytestmark = [pytest.mark.usefixtures("ray_up"), pytest.mark.xdist_group("ray")]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    with Run.open(tmp_path / "run", configure(smoke(), [])) as run:
        return run


def make(run: Run, folder: Path, fatal: int, deaths: int) -> tuple[dict[str, float], dict[int, list[str]]]:
    """Times of the stage, and who tried each of five shards."""
    folder.mkdir()
    mortal = worker(Mortal, cpus=0.5)

    def build():
        return mortal.remote(folder, fatal, deaths)

    times = make_shards(run, "encode", build, [build(), build()], 5)
    return times, {index: (folder / str(index)).read_text().split() for index in range(5)}


def test_shard_of_a_lost_actor_is_made_by_another_one(run, tmp_path, capfd):
    times, tries = make(run, tmp_path / "tries", fatal=2, deaths=1)
    assert [len(tries[index]) for index in range(5)] == [1, 1, 2, 1, 1]
    lost, other = tries[2]
    assert lost != other and all(lost not in tries[index] for index in (3, 4)), "nothing is asked of the dead"
    assert times["cpu_seconds"] == 5 * 0.5
    assert "shard 2 is begun again" in capfd.readouterr().err


def test_undisturbed_every_shard_is_made_once(run, tmp_path, capfd):
    """Negative control of the test above."""
    _, tries = make(run, tmp_path / "tries", fatal=2, deaths=0)
    assert all(len(tried) == 1 for tried in tries.values())
    assert "begun again" not in capfd.readouterr().err


def test_shard_that_kills_whoever_makes_it_ends_the_stage(run, tmp_path):
    with pytest.raises(RunError, match=r"'Mortal \d+' died"):
        make(run, tmp_path / "tries", fatal=4, deaths=100)
    assert len((tmp_path / "tries" / "4").read_text().split()) == LOSSES + 1


@pytest.mark.slow
def test_latents_are_whole_after_an_encoder_was_killed(run, monkeypatch):
    """`dreamer4 encode` with real models; the latents are those of an encoder that nobody disturbed."""
    record(run, episodes=25, shard_frames=60)
    run.checkpoints("tokenizer").save(1, new_tokenizer(run).state_dict(), {}, run.identity())
    monkeypatch.setattr(stages, "LatentWriter", FragileWriter)
    encode(run)
    assert (run.path / "killed").exists(), "one was killed"
    data = RunData(run)
    expected = Encoder(load_tokenizer(run), data.dataset).encode(0, data.dataset.episode_count)
    assert len(data.dataset.manifest.shards) >= 3
    assert np.allclose(data.latents().latents(0, data.dataset.frame_count), expected, atol=1e-6)
    assert not list(run.latents.glob(".*")), "nothing half made is left"
