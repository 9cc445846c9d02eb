"""What benchmarks share: clocks, the rates that a machine reaches at best, memory, and where the time goes.

On a CPU all rates are per CPU-second of the whole process, because others may use the machine at the same time; on a
GPU they are per second, with all of its work waited for.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from dreamer4.files import replacing, write_atomic

SIZES = {"cpu": 1024, "cuda": 8192}  # of square matrices: large enough for the best rate
COPIED = {"cpu": 1 << 27, "cuda": 1 << 32}  # bytes: no cache holds them


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """What `work` takes."""
    if device.type == "cpu":
        begin = time.process_time()
        work()
        return time.process_time() - begin
    torch.cuda.synchronize(device)
    begin = time.monotonic()
    work()
    torch.cuda.synchronize(device)
    return time.monotonic() - begin


@dataclass(frozen=True)
class Roofline:
    """The best of several tries each: operations per second of a matrix product, bytes per second of a copy."""

    flops_per_s: float
    bytes_per_s: float

    @classmethod
    def measure(cls, device: torch.device, dtype: torch.dtype, tries: int = 5) -> "Roofline":
        size = SIZES[device.type]
        matrix = torch.randn(size, size, device=device).to(dtype)
        block = torch.zeros(COPIED[device.type] // 2, dtype=torch.uint8, device=device)
        other = torch.empty_like(block)
        product = [seconds(lambda: matrix @ matrix, device) for _ in range(tries + 1)][1:]
        copy = [seconds(lambda: other.copy_(block), device) for _ in range(tries + 1)][1:]
        # A copy reads and writes every byte.
        return cls(2 * size**3 / min(product), 2 * block.numel() / min(copy))


def peak_memory_mb(work: Callable[[], object], device: torch.device) -> float:
    """The most memory while `work` runs: on a GPU all that torch holds, on a CPU what is added to what there was."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) / 1e6
    before = _resident_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's high-water mark begins anew
    work()
    return _resident_mb("VmHWM") - before


def _resident_mb(name: str) -> float:
    """A line of `/proc/self/status`, in units of 10^6 bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError(f"no line '{name}' in /proc/self/status")


def write_profile(work: Callable[[], object], device: torch.device, folder: Path, name: str, rows: int = 20) -> str:
    """Writes `NAME.trace.json`, for chrome://tracing or Perfetto, and `NAME.txt`; returns the text.

    The text is one page: the operators by their own time.
    """
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=kinds) as profiler:
        seconds(work, device)
    with replacing(folder / f"{name}.trace.json") as temporary:
        profiler.export_chrome_trace(str(temporary))
    text = summary(profiler, device, rows)
    write_atomic(folder / f"{name}.txt", text.encode())
    return text


def summary(profiler: profile, device: torch.device, rows: int) -> str:
    """Operators by the time that they themselves take, with their share of all."""
    kind = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    found = sorted(profiler.key_averages(), key=lambda event: -getattr(event, kind))
    total = sum(getattr(event, kind) for event in found) or 1
    lines = [f"{'operator':50} {'ms':>9} {'share':>7} {'calls':>7}"]
    for event in found[:rows]:
        own = getattr(event, kind)
        lines.append(f"{event.key[:50]:50} {own / 1000:9.1f} {100 * own / total:6.1f}% {event.count:7}")
    others = sum(getattr(event, kind) for event in found[rows:])
    lines.append(f"{f'{max(0, len(found) - rows)} others':50} {others / 1000:9.1f} {100 * others / total:6.1f}%")
    return "\n".join(lines) + "\n"
