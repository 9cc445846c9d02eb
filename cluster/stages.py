"""The stages of a run, in order. Each is idempotent: done work is kept, an interrupted stage goes on."""

import time
from collections.abc import Callable
from pathlib import Path

from actors.collector import Collector
from actors.encoder import Encoder
from cluster.clock import Clock
from cluster.evaluation import evaluate_policy
from cluster.imagination_loop import improve_policy
from cluster.inspection import inspect
from cluster.models import RunData, load_tokenizer
from cluster.placement import result, worker
from cluster.pretrain import train_stage
from cluster.report import write_report
from cluster.run import Run
from cluster.telemetry import Progress
from dreamer4.data.latents import finish_latents, latents_finished, weights_fingerprint, write_latents
from dreamer4.data.writer import ShardWriter, finished_shard, merge_shards
from dreamer4.envs.registry import spec
from dreamer4.rng import seed_of


def collect(run: Run) -> None:
    """Records the demonstrator's episodes, shard by shard, by collectors side by side."""
    data = run.config.data
    shards = -(-data.frames // data.shard_frames)
    collect_all(run, "collect", shards, Recorder)
    # Shards are recorded independently, so the numbers of their episodes are known only now.
    manifest = merge_shards(run.data, shards)
    run.finish("collect", {**manifest.statistics, "frames": manifest.frames, "episodes": manifest.episodes, **times(run, "collect")})


def encode(run: Run) -> None:
    """Encodes every shard of the recordings once, side by side."""
    data = RunData(run)
    model = weights_fingerprint(load_tokenizer(run).state_dict())
    collect_all(run, "encode", len(data.dataset.manifest.shards), LatentWriter)
    finish_latents(run.latents, data.dataset, model)
    run.finish("encode", {"frames": data.dataset.frame_count, "tokenizer": model, **times(run, "encode")})
