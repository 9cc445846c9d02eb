"""Runs on recordings that were made elsewhere, such as imported ones."""

from pathlib import Path

import numpy as np
import pytest
from trained import record

from cluster.config import configure
from cluster.models import RunData
from cluster.presets import doorkey, smoke
from cluster.reports.report import Report
from cluster.run import Run
from cluster.stages import run_stage
from dreamer4.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Run:
    with Run.open(tmp_path_factory.mktemp("elsewhere") / "run", configure(smoke(), [])) as run:
        record(run)
        return run


def on(recordings: Run, path: Path, *settings: str) -> Run:
    with Run.open(path, configure(smoke(), [f"data.source={recordings.data}", *settings])) as run:
        return run


def test_a_run_reads_the_recordings_where_they_are(recordings, tmp_path):
    run = on(recordings, tmp_path / "run")
    run_stage("collect", run)
    reported = run.finished("collect")
    assert reported is not None and reported["frames"] == RunData(recordings).dataset.frame_count
    one, other = (RunData(each).clips("tokenizer").batch(3, 4, 5) for each in (run, recordings))
    assert one.video_BTHWC is not None and other.video_BTHWC is not None
    np.testing.assert_array_equal(one.video_BTHWC, other.video_BTHWC)
    assert not (run.path / "data").exists()


def test_places_are_those_of_where_the_command_was_given(recordings, tmp_path, monkeypatch):
    """Workers and later commands look from elsewhere."""
    place = Path(recordings.data)
    monkeypatch.chdir(place.parent)
    config = configure(smoke(), [f"data.source={place.name}", f'data.mixture=["{place.name}"]', "data.weights=[1,1]"])
    assert (config.data.source, config.data.mixture) == (str(place), (str(place),))
    vgg, linear = "tokenizer_training.perceptual_vgg=vgg", "tokenizer_training.perceptual_linear=/w/linear"
    training = configure(config, [vgg, linear]).tokenizer_training
    assert (training.perceptual_vgg, training.perceptual_linear) == (str(place.parent / "vgg"), "/w/linear")
    assert configure(config, ["data.source=none", "data.mixture=[]", "data.weights=[]"]).data.source is None


def test_sizes_of_the_world_model_follow_from_the_recordings(recordings, tmp_path):
    run = on(recordings, tmp_path / "run", "env=a-game-of-their-own")
    assert run.config.dynamics.space == recordings.config.dynamics.space
    assert run.config.dynamics.tasks == len(RunData(recordings).dataset.manifest.tasks)


def test_without_an_environment_no_policy_is_judged_and_none_is_missed(recordings, tmp_path, capsys):
    run = on(recordings, tmp_path / "run", "env=a-game-of-their-own")
    run_stage("evaluate", run)
    assert run.finished("evaluate") == {"policies": []}
    assert "'a-game-of-their-own' can't be played here" in capsys.readouterr().out
    assert "evaluation of" not in Report(run).summary()


def test_with_an_environment_all_but_the_unknown_player_are_judged(recordings, tmp_path):
    run = on(recordings, tmp_path / "run")
    assert run.config.judged == ("random", "bc", *run.config.controls, "pmpo")
    assert recordings.config.judged[:2] == ("random", "demonstrator")
    assert doorkey().judged[-4:] == ("shuffled", "iql@0.001", "iql@0.01", "pmpo")
    assert "evaluation of PMPO" in Report(run).summary()


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        (["data.source=/nowhere"], DataError, "/nowhere"),
        (["env=MiniGrid-DoorKey-5x5-v0"], ConfigError, r"whose frames or actions are not those of 'MiniGrid-DoorKey"),
        (["env=theirs", "tokenizer.frame=[8,8,3]"], ConfigError, "add tokenizer.frame="),
    ],
)
def test_recordings_that_do_not_fit_are_refused_with_one_sentence(recordings, settings, error, sentence):
    with pytest.raises(error, match=sentence):
        configure(smoke(), [f"data.source={recordings.data}", *settings])
