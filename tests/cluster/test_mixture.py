"""Tokenizer and dynamics on recordings and films without actions, by `data.mixture`."""

from dataclasses import replace

import numpy as np
import pytest
from trained import record

from actors.collector import Collector
from cluster.config import configure
from cluster.data.tools import latent_faults
from cluster.models import RunData, new_dynamics, new_tokenizer
from cluster.presets import smoke
from cluster.pretrain import StageTrainer, build_learner
from cluster.run import Run
from cluster.stages import LatentWriter, finish_encode
from dreamer4.data.mixing import Half, MixedClips
from dreamer4.data.writer import DatasetWriter
from dreamer4.envs.registry import spec
from dreamer4.errors import ConfigError, DataError
from dreamer4.rng import generator
from learners.agent import AgentLearner
from learners.parts import WHOLE

STEPS = 6


def write_films(run: Run, folder, tasks: tuple[str, ...] | None = None) -> str:
    """Other episodes, whose keys nobody wrote down."""
    config = run.config
    env, collector = spec(config.env), Collector(config.env, config.data.demonstrator, 99)
    with DatasetWriter(folder, env.name, env.frame_shape, env.actions, tasks or env.tasks, 60) as writer:
        for episode in collector.collect(0, 8):
            zeros = np.zeros_like(episode.act_out_TA)
            writer.add(replace(episode, act_out_TA=zeros, act_known_T=np.zeros(episode.length, bool), success=False))
    return str(folder)


def train(run: Run, stage: str) -> list[dict[str, float]]:
    trainer, rows = StageTrainer(str(run.path), stage), list[dict[str, float]]()
    while trainer.position < STEPS:
        rows += trainer.portion(STEPS - trainer.position)
    trainer.save()
    return rows


def encode(run: Run) -> None:
    """As `dreamer4 encode`, in this process."""
    writer = LatentWriter(str(run.path))
    for index in range(len(writer.shards)):
        writer.make(index)
    finish_encode(run, {})


@pytest.fixture
def run(tmp_path) -> Run:
    """A run with recordings and films, of which nothing is trained."""
    with Run.open(tmp_path / "first", configure(smoke(), [])) as first:
        record(first, episodes=12, shard_frames=100)
        films = write_films(first, tmp_path / "films")
    settings = [f"data.source={first.data}", f'data.mixture=["{films}"]', "data.weights=[1,3]"]
    with Run.open(tmp_path / "run", configure(smoke(), settings)) as run:
        return run


@pytest.mark.slow
def test_stages_train_on_recordings_and_films_by_weight(run):
    """Negative control: recordings alone give other losses from the first update on."""
    mixed = train(run, "tokenizer")
    encode(run)
    films, folder = RunData(run).mixture[0]
    finished = run.finished("encode")
    assert finished is not None and finished["frames"] == RunData(run).dataset.frame_count + films.frame_count
    assert len(list(folder.glob("*.arrow"))) == len(films.manifest.shards) > 1
    clips = RunData(run).mixed_clips("dynamics", latents=True)
    assert isinstance(clips, MixedClips)
    known = [clips.batch(step, 32, 8).act_out_known_BT.any(1).float().mean() for step in range(20)]
    assert 0.15 < float(np.mean(known)) < 0.35, "a quarter has actions"
    model = train(run, "dynamics")
    assert np.isfinite([row["mse"] for row in mixed]).all() and np.isfinite([row["shortcut"] for row in model]).all()
    assert not isinstance(RunData(run).clips("agent", latents=True), MixedClips)
    alone = replace(run.config, data=replace(run.config.data, mixture=(), weights=()))
    with Run.open(run.path.parent / "alone", alone) as other:
        assert train(other, "tokenizer")[0]["mse"] != mixed[0]["mse"]


def test_without_weights_every_frame_is_drawn_as_often_as_any_other(run):
    with Run.open(run.path.parent / "even", replace(run.config, data=replace(run.config.data, weights=()))) as even:
        data = RunData(even)
        clips = data.mixed_clips("tokenizer")
    assert isinstance(clips, MixedClips)
    trained, films = int(data.dataset.lengths_E[data.training_E].sum()), data.mixture[0][0].frame_count
    assert clips.share == pytest.approx([trained / (trained + films), films / (trained + films)])


def test_a_run_without_a_mixture_draws_what_it_always_drew(run):
    with Run.open(run.path.parent / "alone", configure(smoke(), [f"data.source={run.config.data.source}"])) as alone:
        data = RunData(alone)
        one, other = data.mixed_clips("tokenizer").batch(3, 4, 5), data.clips("tokenizer").batch(3, 4, 5)
    assert one.video_BTHWC is not None and other.video_BTHWC is not None
    assert np.array_equal(one.video_BTHWC, other.video_BTHWC)


def test_what_can_not_be_mixed_is_refused_before_the_run_begins(run, tmp_path):
    source, films = f"data.source={run.config.data.source}", run.config.data.mixture[0]
    other = write_films(run, tmp_path / "other", ("something else",))
    for settings, error, sentence in (
        ([f'data.mixture=["{other}"]'], ConfigError, r"the tasks of '.*other' are \['something else'\].*--like"),
        (['data.mixture=["/nowhere"]'], DataError, "/nowhere"),
        ([f'data.mixture=["{films}"]', "data.weights=[1]"], ConfigError, "data.weights are 2 numbers"),
        ([f'data.mixture=["{films}"]', "data.weights=[0,0]"], ConfigError, "data.weights are 2 numbers"),
        (["data.weights=[1,-1]"], ConfigError, "data.weights are 1 numbers"),
    ):
        with pytest.raises(error, match=sentence):
            configure(smoke(), [source, *settings])


def test_an_agent_learns_tasks_and_rewards_by_events_where_the_config_says_so(run, tmp_path):
    """So do the contexts of dreams. Negative control: without the setting rewards are those of the recordings."""
    films = RunData(run).mixture[0][0]
    events = np.zeros((films.lengths_E[0], len(films.manifest.tasks)), bool)
    events[5] = True
    shape = (films.manifest.env, films.manifest.frame, films.manifest.actions, films.manifest.tasks)
    with DatasetWriter(tmp_path / "events", *shape) as writer:
        known = np.arange(len(events)) < len(events) - 1
        for _ in range(8):
            writer.add(replace(films.episode(0), events_TK=events, act_known_T=known))
    rewards = {}
    for relevant in ("all", "events"):
        settings = [f"data.source={tmp_path / 'events'}", f"agent_training.relevant={relevant}"]
        with Run.open(tmp_path / relevant, configure(smoke(), settings)) as own:
            own.checkpoints("tokenizer").save(1, new_tokenizer(own).state_dict(), {}, own.identity())
            own.checkpoints("dynamics").save(1, new_dynamics(own).state_dict(), {}, own.identity())
            encode(own)
            assert latent_faults(own.path) == []
            learner = build_learner(own, "agent")
            assert isinstance(learner, AgentLearner)
            clip, cloned_B, _ = learner.draw(0, generator(0), WHOLE.rows(learner.training.batch))
            rewards[relevant] = clip.reward_BT[slice(None) if cloned_B is None else cloned_B].sum(1)
            assert isinstance(RunData(own).contexts(), Half) == (relevant == "events")
    next(own.latents.glob("*.arrow")).unlink()
    assert [fault.kind for fault in latent_faults(own.path)] == ["latents"]
    assert bool((rewards["events"] >= 1).all()) and not bool((rewards["all"] >= 1).all())


def test_half_of_what_the_world_model_learns_from_may_be_of_distinct_frames(tmp_path):
    with Run.open(tmp_path / "run", configure(smoke(), ["data.half_distinct=true"])) as run:
        record(run, episodes=40)
        run.checkpoints("tokenizer").save(1, new_tokenizer(run).state_dict(), {}, run.identity())
        encode(run)
    data = RunData(run)
    clips, contexts = data.mixed_clips("tokenizer"), data.contexts()
    assert isinstance(clips, Half) and isinstance(contexts, Half) and not isinstance(data.clips("agent"), Half)
    assert np.array_equal(clips.relevant_E, data.distinct) and np.array_equal(contexts.relevant_E, data.distinct)
    assert data.training_E[data.dataset.episode_of(data.distinct)].all()
    assert np.array_equal(data.relevant(), data.distinct)
    run.config = configure(run.config, ["agent_training.relevant=success"])  # of which behaviour is cloned
    assert np.array_equal(data.relevant(), data.dataset.success_E & data.training_E)
