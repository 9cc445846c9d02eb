"""The stages of a run, in order. Each is idempotent: done work is kept, an interrupted stage goes on."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from actors.collector import Collector
from actors.encoder import Encoder
from cluster.clock import Clock
from cluster.config import unplayable
from cluster.data.dealing import deal
from cluster.evaluation import evaluate_policy
from cluster.models import RunData, load_tokenizer
from cluster.placement import result, worker
from cluster.policy.improve import improve_policy
from cluster.pretrain import train_stage
from cluster.reports.inspection import inspect
from cluster.reports.report import write_report
from cluster.run import Run
from cluster.telemetry import Progress
from cluster.variants import VARIANTS
from dreamer4.data.codecs import Codec
from dreamer4.data.episodes import EpisodeDataset
from dreamer4.data.latents import finish_latents, latents_fingerprint, latents_finished, write_latents
from dreamer4.data.schema import Manifest
from dreamer4.data.shard_writer import ShardWriter
from dreamer4.data.writer import finished_shard, merge_shards
from dreamer4.envs.registry import spec

PILOT_EPISODES = 50  # played to learn how long episodes are, so that shards can be recorded side by side


class Recorder:
    """Records shards of the demonstrator's episodes, in a process of its own."""

    def __init__(self, path: str):
        self.run = Run.attach(Path(path))
        config = self.run.config
        self.collector = Collector(config.env, config.data.demonstrator, config.seed)

    def mean_length(self) -> float:
        """Frames of an episode, over the first few."""
        return sum(episode.length for episode in self.collector.collect(0, PILOT_EPISODES)) / PILOT_EPISODES

    def make(self, index: int, episodes: int) -> float:
        """Records shard number `index`, unless it is there; returns the CPU seconds of it."""
        before = time.process_time()
        folder = Path(self.run.data)
        if finished_shard(folder, index) is None:
            env = spec(self.run.config.env)
            first = index * episodes
            shape = (env.name, env.frame_shape, env.actions, env.tasks)
            codec = Codec.choose(self.run.config.data.codec, env.frame_shape)
            with ShardWriter(folder, *shape, index=index, first_episode=first, codec=codec) as writer:
                for episode in range(first, first + episodes):
                    writer.add(self.collector.episode(episode))
        return time.process_time() - before


class LatentWriter:
    """Encodes shards of the recordings, in a process of its own."""

    def __init__(self, path: str):
        self.run = Run.attach(Path(path))
        tokenizer, data = load_tokenizer(self.run), RunData(self.run)
        weights = tokenizer.state_dict()
        self.models = {folder: latents_fingerprint(weights, dataset) for dataset, folder in data.places}
        self.encoder, self.shards = partial(Encoder, tokenizer), shards_of(data)

    def make(self, index: int) -> float:
        """Encodes shard number `index`, unless it is there; returns the CPU seconds of it."""
        before = time.process_time()
        dataset, folder, number = self.shards[index]
        if not latents_finished(folder, number, self.models[folder]):
            shard = dataset.manifest.shards[number]
            latents = self.encoder(dataset).encode(shard.first_episode, shard.first_episode + shard.episodes)
            write_latents(folder, number, latents, self.models[folder])
        return time.process_time() - before


def shards_of(data: RunData) -> list[tuple[EpisodeDataset, Path, int]]:
    """All shards of all datasets of a run: dataset, folder of its latents, number of the shard in both."""
    return [(each, folder, number) for each, folder in data.places for number in range(len(each.manifest.shards))]


def make_shards(
    run: Run, stage: str, build: Callable[[], Any], actors: list[Any], shards: int, *arguments: Any
) -> dict[str, float]:
    """Deals shards to actors, the next one to whoever is free; returns the times of the stage.

    Args and raised errors are those of `cluster.data.dealing.deal`.
    """
    progress = Progress(stage, shards)
    with Clock(run, stage) as clock:
        dealt = deal(stage, actors, build, range(shards), lambda index: arguments)
        for done, (_, cpu_seconds) in enumerate(dealt, start=1):
            clock.add_cpu(cpu_seconds)
            progress.update(done)
        progress.close()
        return clock.record()


def collect(run: Run) -> None:
    """Records the demonstrator's episodes, shards side by side; as many as hold about `data.frames` frames.

    Recordings that were made elsewhere are only looked at.
    """
    if run.config.data.source is not None:
        with Clock(run, "collect") as clock:
            manifest = RunData(run).dataset.manifest
        record_collected(run, manifest, clock.record())
        return
    data, count = run.config.data, run.config.resources.collectors

    def build() -> Any:
        return worker(Recorder, name="recorder").remote(str(run.path))

    actors = [build() for _ in range(count)]
    shards = -(-data.frames // data.shard_frames)
    episodes = max(1, round(data.frames / shards / result(actors[0].mean_length.remote())))
    times = make_shards(run, "collect", build, actors, shards, episodes)
    record_collected(run, merge_shards(Path(run.data), shards), times)


def record_collected(run: Run, manifest: Manifest, times: dict[str, float]) -> None:
    run.finish("collect", {"frames": manifest.frames, "episodes": manifest.episodes, **manifest.statistics, **times})


def encode(run: Run) -> None:
    """Encodes the recordings, and what is mixed with them, once; shards side by side."""
    resources = run.config.resources
    writer = worker(LatentWriter, name="encoder", gpus=resources.worker_gpus, threads=resources.worker_threads)

    def build() -> Any:
        return writer.remote(str(run.path))

    actors = [build() for _ in range(resources.workers)]
    finish_encode(run, make_shards(run, "encode", build, actors, len(shards_of(RunData(run)))))


def finish_encode(run: Run, times: dict[str, float]) -> None:
    """Makes datasets of latents of their shards."""
    data, weights = RunData(run), load_tokenizer(run).state_dict()
    for dataset, folder in data.places:
        finish_latents(folder, dataset, latents_fingerprint(weights, dataset))
    frames, model = sum(dataset.frame_count for dataset, _ in data.places), latents_fingerprint(weights, data.dataset)
    run.finish("encode", {"frames": frames, "tokenizer": model, **times})


def controls(run: Run) -> None:
    """The baselines and negative controls of the config, beside the headline."""
    for name in run.config.controls:
        if run.finished(name) is None:
            improve_policy(run, name) if name in VARIANTS else train_stage(run, name)
    run.finish("controls", {"names": list(run.config.controls)})


def evaluate(run: Run) -> None:
    """Plays every policy of the run and some to compare with, where there is an environment to play in."""
    names = run.config.judged
    if not names:
        print(unplayable(run.config.env), flush=True)
    progress = Progress("evaluate", len(names))
    for done, name in enumerate(names, start=1):
        measured = evaluate_policy(run, name)
        progress.update(done, {name: measured["mean_return"], "success": measured["success"]})
    progress.close()
    run.finish("evaluate", {"policies": list(names)})


def report(run: Run) -> None:
    print(f"report  {write_report(run)}", flush=True)
    run.finish("report", {})


ACTIONS: dict[str, Callable[[Run], None]] = {
    "collect": collect,
    "tokenizer": lambda run: train_stage(run, "tokenizer"),
    "encode": encode,
    "dynamics": lambda run: train_stage(run, "dynamics"),
    "agent": lambda run: train_stage(run, "agent"),
    "policy": improve_policy,
    "controls": controls,
    "evaluate": evaluate,
    "inspect": inspect,
    "report": report,
}
STAGES = tuple(ACTIONS)
REPEATED = ("controls", "evaluate", "report")  # what is done is not done again; settings they depend on may change


def run_stage(name: str, run: Run) -> None:
    """Does a stage, unless it is complete."""
    if run.finished(name) is None or name in REPEATED:
        ACTIONS[name](run)
