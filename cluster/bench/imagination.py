"""`dreamer4 bench imagination`: what an imagined frame costs, with random weights, and how much of the peak it is.

Frames are imagined in turns with a plain transformer of the same sizes (`cluster.bench.imagination_floor`): ratios of
one run hold where the machine is busy, times do not. Actions are given, so the heads' small cost is not part of it; the
agent tokens are, and so is the pass that commits a frame.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from cluster.bench.imagination_floor import Floor
from cluster.bench.measure import Roofline, peak_memory_mb, seconds, write_profile
from cluster.bench.training import SIZES, config_of
from cluster.config import RunConfig
from cluster.models import seeded
from cluster.presets import minecraft
from dreamer4.dynamics import Dynamics
from dreamer4.engine import Engine, accelerate
from dreamer4.errors import ConfigError
from dreamer4.imagination import WorldStream
from dreamer4.packing import pack
from dreamer4.rng import generator
from dreamer4.tokenizer import Tokenizer
from dreamer4.transformer import parameter_count

PAPER_SIZE = "paper-size"


@dataclass(frozen=True)
class Workload:
    """What is measured, and how it is computed."""

    config: RunConfig
    dynamics: Dynamics
    device: torch.device
    dtype: torch.dtype
    engine: Engine
    flops: int  # of a frame of one stream

    def stream(self, batch: int) -> WorldStream:
        """New streams, warmed up."""
        task_B = torch.zeros(batch, dtype=torch.long, device=self.device)
        stream = WorldStream(self.dynamics, self.config.shortcut, self.config.imagination, batch, task_B)
        return accelerate(stream, self.engine, print)

    def noise(self, batch: int, frames: int) -> torch.Tensor:
        sizes = self.config.dynamics.latents, self.config.dynamics.channels
        return torch.rand((batch, frames, *sizes), device=self.device) * 2 - 1

    def observe(self, stream: WorldStream, frames: int) -> None:
        """Frames of made-up data, at most a window at once."""
        batch = stream.cache.position_B.shape[0]
        while frames > 0:
            length = min(frames, self.config.dynamics.window)
            latents = self.noise(batch, length)
            actions = torch.zeros((batch, length, self.config.dynamics.space.columns), device=self.device)
            known = torch.ones((batch, length), dtype=torch.bool, device=self.device)
            stream.observe(latents, actions, known, torch.randn_like(latents))
            frames -= length

    def imagine(self, stream: WorldStream, frames: int) -> None:
        draw, batch = generator("bench"), stream.cache.position_B.shape[0]
        actions = torch.zeros((batch, self.config.dynamics.space.columns), device=self.device)
        for _ in range(frames):
            stream.generate(actions, draw)


def workload(name: str, device: str, precision: str, engine: Engine) -> Workload:
    """The world model of a preset, with random weights.

    Raises:
        ConfigError: there is no such preset, or no GPU where one is asked for.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda was asked for, but torch sees no GPU here")
    config = config_of(name, {PAPER_SIZE: minecraft, **SIZES})
    tokenizer = config.tokenizer
    sizes = {"latents": tokenizer.latents // tokenizer.pack, "channels": tokenizer.channels * tokenizer.pack}
    config = replace(config, dynamics=replace(config.dynamics, **sizes))
    with torch.device(device):
        dynamics = seeded(lambda: Dynamics(config.dynamics), "bench")
    dtype = getattr(torch, precision)
    dynamics = dynamics.to(dtype).requires_grad_(False).eval()
    work = Workload(config, dynamics, torch.device(device), dtype, "eager", 0)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        stream = work.stream(1)
        work.observe(stream, config.imagination.context)
        before = counter.get_total_flops()
        work.imagine(stream, 1)
        flops = counter.get_total_flops() - before
    if engine == "eager":
        pack(dynamics.transformer)  # as imagination workers do; torch can't count these products
    return replace(work, engine=engine, flops=flops)


def beside_the_floor(work: Workload, batch: int, frames: int, turns: int) -> dict[str, Any]:
    """Frames of `batch` streams in turns with the floor's: rates, and the median of the turns' ratios."""
    config, stream = work.config, work.stream(batch)
    context, steps = config.imagination.context, config.imagination.sampling_steps
    floor = Floor(config.dynamics, batch).to(work.device, work.dtype).requires_grad_(False)
    action_BT = torch.zeros((batch, context), dtype=torch.long, device=work.device)

    def theirs() -> None:
        for _ in range(frames):
            noise = torch.randn((batch, *work.noise(1, 1).shape[2:]), device=work.device, dtype=work.dtype)
            floor.generate(noise, action_BT[:, 0], steps)

    def turn() -> tuple[float, float]:
        floor.frame = 0
        floor.observe(work.noise(batch, context).to(work.dtype), action_BT)
        stream.restart(stream.task_B)
        work.observe(stream, context)
        return seconds(theirs, work.device), seconds(lambda: work.imagine(stream, frames), work.device)

    times = [turn() for _ in range(turns + 1)][1:]
    floor_time, own = (median(column) for column in zip(*times, strict=True))
    return {
        "frames_per_s": batch * frames / own,
        "floor_frames_per_s": batch * frames / floor_time,
        "over_floor": median(floor / ours for floor, ours in times),
        "over_floor_turns": [floor / ours for floor, ours in times],
    }


def alone(work: Workload, batch: int, frames: int, turns: int) -> dict[str, Any]:
    """Where the floor has no such actions: rates only."""
    stream = work.stream(batch)
    work.observe(stream, work.config.imagination.context)
    times = [seconds(lambda: work.imagine(stream, frames), work.device) for _ in range(turns + 1)][1:]
    return {"frames_per_s": batch * frames / median(times)}


def latencies(work: Workload, frames: int) -> dict[str, float]:
    """Milliseconds from an action to its frame, of one stream, by the clock on the wall."""
    stream = work.stream(1)
    work.observe(stream, work.config.imagination.context)
    found = []
    for _ in range(frames):
        begin = time.monotonic()
        work.imagine(stream, 1)
        if work.device.type == "cuda":
            torch.cuda.synchronize(work.device)
        found.append(1000 * (time.monotonic() - begin))
    return {f"latency_ms_p{p}": float(np.percentile(found, p)) for p in (50, 95, 99)}


def history_cost(work: Workload, batch: int, frames: int, turns: int) -> float:
    """Cost of a frame after four windows of history over that after one; 1 is flat."""
    streams = [work.stream(batch), work.stream(batch)]
    for stream, windows in zip(streams, (1, 4), strict=True):
        work.observe(stream, windows * work.config.dynamics.window)
    times = [[seconds(lambda s=s: work.imagine(s, frames), work.device) for s in streams] for _ in range(turns + 1)][1:]
    return median(long / short for short, long in times)


def decoded_frames_per_s(work: Workload, frames: int, turns: int) -> float:
    """One stream whose frames become pixels."""
    with torch.device(work.device):
        tokenizer = seeded(lambda: Tokenizer(work.config.tokenizer), "bench").to(work.dtype).requires_grad_(False)
    stream, pixels = work.stream(1), tokenizer.init_decoder_cache(1)
    work.observe(stream, work.config.imagination.context)
    draw, actions = generator("bench"), torch.zeros((1, work.config.dynamics.space.columns), device=work.device)

    def play() -> None:
        for _ in range(frames):
            latents, _ = stream.generate(actions, draw)
            tokenizer.decode(latents.to(work.dtype), cache=pixels)

    return frames / median([seconds(play, work.device) for _ in range(turns + 1)][1:])


@torch.inference_mode()
def measure(work: Workload, batches: list[int], frames: int, turns: int, profile: Path | None) -> dict[str, Any]:
    """Everything about one workload, in one run."""
    config = work.config.dynamics
    steps, batch = work.config.imagination.sampling_steps, batches[-1]
    before = Roofline.measure(work.device, work.dtype)
    compare = alone if len(config.space.parts) > 1 else beside_the_floor
    found = {str(size): compare(work, size, frames, turns) for size in batches}
    eager = replace(work, engine="eager")
    memory = peak_memory_mb(lambda: work.imagine(eager.stream(batch), 1), work.device)
    stream, flops = eager.stream(batch), work.flops
    peak = max(before.flops_per_s, Roofline.measure(work.device, work.dtype).flops_per_s)
    weights = sum(p.numel() * p.element_size() for p in work.dynamics.transformer.parameters())
    kept = sum(memory.numel() * memory.element_size() for memory in stream.cache.memory)
    record = {
        "device": torch.cuda.get_device_name() if work.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "precision": str(work.dtype).removeprefix("torch."),
        "engine": work.engine,
        "params": parameter_count([work.dynamics]),
        "batch": batch,
        "window": config.window,
        "sampling_steps": steps,
        "batches": found,
        "frames_per_s": found[str(batch)]["frames_per_s"],
        "gflop_per_frame": flops / 1e9,
        "achieved_gflops": flops * found[str(batch)]["frames_per_s"] / 1e9,
        "matmul_gflops": peak / 1e9,
        "copy_gb_per_s": before.bytes_per_s / 1e9,
        "mfu": flops * found[str(batch)]["frames_per_s"] / peak,
        "mb_moved_per_step": (steps + 1) * (weights + kept) / 1e6,
        "peak_memory_mb": memory,
        "history_cost_ratio_4x": history_cost(work, batches[0], max(2, frames // 4), 2 * turns),
        "decoded_frames_per_s": decoded_frames_per_s(work, max(2, frames // 2), turns),
        **latencies(work, max(8, 2 * frames)),
    }
    if profile is not None:
        work.imagine(stream, 1)
        print(write_profile(lambda: work.imagine(stream, 2), work.device, profile, "imagination"))
    return record


def table(record: dict[str, Any]) -> str:
    """What a record says, for people."""
    per = "s" if record["device"] != "cpu" else "CPU-s"
    sizes = f"{record['params'] / 1e6:.2f} M parameters, window {record['window']}, K = {record['sampling_steps']}"
    how = f"{record['device']}, {record['threads']} threads, {record['precision']}, {record['engine']}"
    lines = [("world model", sizes), ("computed on", how)]
    for batch, one in record["batches"].items():
        text = f"{one['frames_per_s']:.1f}"
        if "over_floor" in one:
            text += f", the floor {one['floor_frames_per_s']:.1f}: ratio {one['over_floor']:.3f}"
        lines.append((f"frames/{per}, {batch} streams", text))
    lines += [
        (f"frames/{per} with pixels, 1 stream", f"{record['decoded_frames_per_s']:.1f}"),
        (
            "milliseconds per frame, p50 / p95 / p99",
            " / ".join(f"{record[f'latency_ms_p{p}']:.1f}" for p in (50, 95, 99)),
        ),
        (f"GFLOP/{per}, of a matrix product's", f"{record['achieved_gflops']:.1f} of {record['matmul_gflops']:.1f}"),
        ("share of that", f"{100 * record['mfu']:.1f} %, {record['gflop_per_frame']:.2f} GFLOP per frame"),
        (
            "weights and caches read per step",
            f"{record['mb_moved_per_step']:.1f} MB, a copy's GB/s {record['copy_gb_per_s']:.1f}",
        ),
        ("peak memory of new streams and a step", f"{record['peak_memory_mb']:.0f} MB"),
        ("cost after 4 windows over 1", f"{record['history_cost_ratio_4x']:.3f}"),
    ]
    return "\n".join(f"{left:42}{right}" for left, right in lines)


def bench_imagination(
    name: str,
    device: str,
    precision: str,
    engine: Engine,
    batches: list[int],
    frames: int,
    threads: int,
    turns: int,
    profile: Path | None,
) -> dict[str, Any]:
    """Measures and prints; gives torch its threads back. Raises `ConfigError` on impossible options."""
    if min(threads, turns, frames, *batches) < 1:
        raise ConfigError(f"threads ({threads}), turns ({turns}), frames ({frames}), batches ({batches}) start at 1")
    work, former = workload(name, device, precision, engine), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        record = {"preset": name, **measure(work, batches, frames, turns, profile)}
    finally:
        torch.set_num_threads(former)
    print(table(record))
    return record
