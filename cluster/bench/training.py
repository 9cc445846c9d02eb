"""`dreamer4 bench training`: what an update of stage 1, 2 or 3 costs, on made-up data, and how much of the peak it is.

The world model of the `common` workload, which other implementations were measured at, is updated in turns with a plain
transformer of its sizes (`cluster.bench.floor`), with a quarter of the rows bootstrapped and with none: ratios of one
run hold where the machine is busy, times do not.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from cluster.bench.floor import FloorLearner
from cluster.bench.measure import Roofline, peak_memory_mb, seconds, write_profile
from cluster.config import RunConfig
from cluster.models import seeded
from cluster.presets import PRESETS, crafter
from dreamer4.agent import Heads
from dreamer4.data.clips import ALL, ClipSampler
from dreamer4.dynamics import Dynamics
from dreamer4.errors import ConfigError, nearest
from dreamer4.rng import generator
from dreamer4.tokenizer import Tokenizer
from dreamer4.transformer import parameter_count
from dreamer4.types import Clip
from learners.agent import AgentLearner
from learners.dynamics import DynamicsLearner
from learners.parallel import Parallel, ParallelConfig
from learners.tokenizer import TokenizerLearner

COMMON, BOOTSTRAPPED = "common", 0.25
StageLearner = TokenizerLearner | DynamicsLearner | AgentLearner


@dataclass(frozen=True)
class Workload:
    """What is measured, and how it is computed."""

    name: str
    stage: str
    config: RunConfig
    batch: int
    length: int
    device: torch.device
    parallel: ParallelConfig

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.parallel.precision)


def common() -> RunConfig:
    """The common workload: 9 M parameters of world model, 64 x 64 frames, few rows. Other sizes are `crafter`'s."""
    base = crafter()
    return replace(
        base,
        tokenizer=replace(base.tokenizer, heads=4),
        tokenizer_training=replace(base.tokenizer_training, batch=2, length=8),
        dynamics=replace(base.dynamics, heads=4, kv_heads=4),
        shortcut=replace(base.shortcut, bootstrap_rows=BOOTSTRAPPED),
        dynamics_training=replace(base.dynamics_training, batch=4, length=16, image_share=0.0),
        agent_training=replace(base.agent_training, batch=4, length=16, image_share=0.0),
    )


SIZES: Mapping[str, Callable[[], RunConfig]] = {COMMON: common, **PRESETS}


def config_of(name: str, known: Mapping[str, Callable[[], RunConfig]] = SIZES) -> RunConfig:
    """What `--preset` names. Raises `ConfigError` that names the nearest of all that are known."""
    if name not in known:
        raise ConfigError(f"there is no preset '{name}'{nearest(name, known)}")
    return known[name]()


def workload(
    name: str,
    stage: str,
    device: str = "cpu",
    parallel: ParallelConfig | None = None,
    batch: int | None = None,
    length: int | None = None,
) -> Workload:
    """A stage of a preset with made-up recordings, so without its environment.

    Raises:
        ConfigError: there is no such preset, or no GPU where one is asked for.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda was asked for, but torch sees no GPU here")
    config = config_of(name)
    tokenizer, training = config.tokenizer, getattr(config, f"{stage}_training")
    preset_batch = 1 if name == "minecraft" else training.batch  # its rows are meant for many GPUs
    rows: int = preset_batch if batch is None else batch
    frames: int = training.length if length is None else length
    if rows < 1 or frames < 1:
        raise ConfigError(f"--batch ({rows}) and --length ({frames}) must be at least 1")
    sizes = {"batch": rows, "length": frames}
    config = replace(
        config,
        tokenizer=replace(tokenizer, lpips_weight=0.0),
        dynamics=replace(
            config.dynamics,
            latents=tokenizer.latents // tokenizer.pack,
            channels=tokenizer.channels * tokenizer.pack,
        ),
        tokenizer_training=replace(config.tokenizer_training, **sizes),
        dynamics_training=replace(config.dynamics_training, **sizes, long_share=0.0, long_only_steps=0),
        agent_training=replace(config.agent_training, **sizes, relevant="all"),
    )
    return Workload(name, stage, config, rows, frames, torch.device(device), parallel or ParallelConfig())


class MadeUpClips(ClipSampler):
    """The same random clip again and again: reading recordings has a benchmark of its own."""

    def __init__(self, config: RunConfig, stage: str):
        self.config, self.stage = config, stage
        self.made: dict[tuple[int, int], Clip] = {}

    def batch(self, step: int, batch: int, length: int, rows: slice | np.ndarray = ALL, contents: bool = True) -> Clip:
        if (batch, length) not in self.made:
            self.made[batch, length] = self._make(batch, length)
        return self.made[batch, length]

    def _make(self, batch: int, length: int) -> Clip:
        space, draw = self.config.dynamics.space, generator("made-up clips", batch, length)
        shape, known = (batch, length), torch.ones(batch, length, dtype=torch.bool)
        action = space.random(batch * length, draw).unflatten(0, shape)
        zero = torch.zeros(shape, dtype=torch.long)
        video = latents = None
        if self.stage == "tokenizer":
            video = torch.randint(256, (*shape, *self.config.tokenizer.frame), generator=draw, dtype=torch.uint8)
        else:
            sizes = self.config.dynamics.latents, self.config.dynamics.channels
            latents = torch.rand((*shape, *sizes), generator=draw) * 2 - 1
        reward, keeps = torch.zeros(shape), torch.ones(shape)
        return Clip(action, known, action, known, reward, known, keeps, zero, zero, video, latents)


def new_learner(work: Workload) -> StageLearner:
    """A learner of fresh weights, on its device."""
    config, seed = work.config, work.config.seed
    clips = MadeUpClips(config, work.stage)
    if work.stage == "tokenizer":
        tokenizer = seeded(lambda: Tokenizer(config.tokenizer), "bench").to(work.device)
        learner: StageLearner = TokenizerLearner(tokenizer, config.tokenizer_training, clips, seed)
    else:
        dynamics = seeded(lambda: Dynamics(config.dynamics), "bench").to(work.device)
        if work.stage == "dynamics":
            learner = DynamicsLearner(dynamics, config.dynamics_training, config.shortcut, clips, seed)
        else:
            make = lambda: Heads(config.heads, config.dynamics.feature_width, config.dynamics.space)  # noqa: E731
            heads, training = seeded(make, "bench").to(work.device), config.agent_training
            learner = AgentLearner(dynamics, heads, training, config.shortcut, clips, np.ones(1, bool), seed)
    learner.parallelise(Parallel(work.parallel))
    return learner


def beside_the_floor(work: Workload, turns: int) -> dict[str, Any]:
    """Updates of the world model in turns with the floor's; rates, and medians of the turns' ratios."""
    floor = FloorLearner(work.config.dynamics, work.config.shortcut, work.device)
    learner = new_learner(work)
    assert isinstance(learner, DynamicsLearner)
    clip = MadeUpClips(work.config, work.stage).batch(0, work.batch, work.length).to(work.device)

    def turn(index: int) -> tuple[float, float]:
        theirs = seconds(lambda: floor.step(clip, generator("floor", index)), work.device)
        return theirs, seconds(lambda: learner.step(index), work.device)

    times = [turn(index) for index in range(turns + 2)][2:]  # the first updates allocate, or compile
    frames, ratio = work.batch * work.length, median(theirs / ours for theirs, ours in times)
    flops, floor_flops = learner.estimate_flops(0), floor.estimate_flops(work.batch, work.length)
    theirs, ours = (median(column) for column in zip(*times, strict=True))
    return {
        "frames_per_s": frames / ours,
        "floor_frames_per_s": frames / theirs,
        "frames_over_floor": ratio,
        "frames_over_floor_turns": [theirs / ours for theirs, ours in times],
        "gflops_over_floor": ratio * flops / floor_flops,
        "floor_achieved_gflops": floor_flops / theirs / 1e9,
        "achieved_gflops": flops / ours / 1e9,
    }


def measure(work: Workload, turns: int, profile: Path | None = None) -> dict[str, Any]:
    """Everything about one workload, in one run."""
    learner = new_learner(work)
    memory = peak_memory_mb(lambda: learner.step(0), work.device)
    learner.step(1)
    before = Roofline.measure(work.device, work.dtype)
    times = [seconds(lambda index=index: learner.step(index), work.device) for index in range(2, 2 + turns)]
    after = Roofline.measure(work.device, work.dtype)
    peak = max(before.flops_per_s, after.flops_per_s)
    flops, time = learner.estimate_flops(2), median(times)
    record = {
        "preset": work.name,
        "stage": work.stage,
        "device": torch.cuda.get_device_name() if work.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "precision": work.parallel.precision,
        "compile": work.parallel.compile,
        "activation_checkpointing": work.parallel.activation_checkpointing,
        "params": parameter_count([learner.module]),
        "batch": work.batch,
        "length": work.length,
        "frames_per_s": work.batch * work.length / time,
        "update_ms": 1000 * time,
        "update_ms_turns": [1000 * value for value in times],
        "gflop_per_update": flops / 1e9,
        "achieved_gflops": flops / time / 1e9,
        "matmul_gflops": peak / 1e9,
        "copy_gb_per_s": max(before.bytes_per_s, after.bytes_per_s) / 1e9,
        "mfu": flops / time / peak,
        "peak_memory_mb": memory,
    }
    if work.stage == "dynamics" and len(work.config.dynamics.space.parts) == 1:
        record["floor"] = {
            f"bootstrap_{share:g}": beside_the_floor(bootstrapping(work, share), turns) for share in (BOOTSTRAPPED, 0.0)
        }
    if profile is not None:
        print(write_profile(lambda: learner.step(3), work.device, profile, f"{work.name}-{work.stage}"))
    return record


def bootstrapping(work: Workload, share: float) -> Workload:
    """The same with this share of the rows bootstrapped, rounded up to one row."""
    rows = share if not share else max(share, 1 / work.batch)
    return replace(work, config=replace(work.config, shortcut=replace(work.config.shortcut, bootstrap_rows=rows)))


def table(record: dict[str, Any]) -> str:
    """What a record says, for people."""
    per = "s" if record["device"] != "cpu" else "CPU-s"
    lines: list[tuple[str, str]] = [
        ("workload", f"{record['preset']} {record['stage']}, {record['batch']} x {record['length']} frames"),
        ("parameters", f"{record['params'] / 1e6:.2f} M"),
        ("computed on", f"{record['device']}, {record['threads']} threads, {record['precision']}"),
        (f"frames/{per}", f"{record['frames_per_s']:.1f}"),
        ("one update", f"{record['update_ms']:.1f} ms, {record['gflop_per_update']:.2f} GFLOP"),
        (f"GFLOP/{per}", f"{record['achieved_gflops']:.1f}"),
        (f"of a matrix product's GFLOP/{per}", f"{record['matmul_gflops']:.1f}"),
        ("model FLOPs utilisation", f"{100 * record['mfu']:.1f} %"),
        (f"a copy's GB/{per}", f"{record['copy_gb_per_s']:.1f}"),
        ("peak memory of an update", f"{record['peak_memory_mb']:.0f} MB"),
    ]
    for name, found in record.get("floor", {}).items():
        share = float(name.removeprefix("bootstrap_"))
        ratios = f"{found['frames_over_floor']:.3f} in frames/s, {found['gflops_over_floor']:.3f} in GFLOP/s"
        rates = f"({found['frames_per_s']:.1f} and {found['floor_frames_per_s']:.1f} frames/{per})"
        lines.append((f"over the floor, {100 * share:.0f} % bootstrapped", f"{ratios} {rates}"))
    return "\n".join(f"{left:42}{right}" for left, right in lines)


def bench_training(
    name: str,
    stage: str,
    device: str,
    parallel: ParallelConfig,
    batch: int | None,
    length: int | None,
    threads: int,
    turns: int,
    profile: Path | None,
) -> dict[str, Any]:
    """Measures and prints; gives torch its threads back. Raises `ConfigError` on impossible options."""
    if threads < 1 or turns < 1:
        raise ConfigError(f"--threads ({threads}) and --turns ({turns}) must be at least 1")
    work, former = workload(name, stage, device, parallel, batch, length), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        record = measure(work, turns, profile)
    finally:
        torch.set_num_threads(former)
    print(table(record))
    return record
