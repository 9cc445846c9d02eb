"""What trainers report of their speed: floating-point operations per second, and their share of the device's peak."""

import re

import torch

from cluster.config import ResourceConfig

TIMED = ("update_seconds", "tflops", "mfu")  # what two equal runs differ in

# Dense matrix products, 10^12 operations per second in bfloat16 and in plain float32, as in NVIDIA's data sheets.
PEAKS = {
    "H200": (989.0, 67.0),
    "H100 PCIe": (756.0, 51.0),
    "H100 NVL": (835.0, 60.0),
    "H100": (989.0, 67.0),
    "A100": (312.0, 19.5),
    "L40S": (362.0, 91.6),
    "L4": (121.0, 30.3),
}


def peak_of(name: str, precision: str) -> float | None:
    """The peak of a GPU by the name that its driver gives, in 10^12 operations per second; None: not known."""
    for model, (bfloat16, float32) in PEAKS.items():
        if re.search(rf"\b{model}\b", name):
            return bfloat16 if precision == "bfloat16" else float32
    return None


class Utilisation:
    """Turns operations and seconds of an update into metrics.

    Args:
        resources: may give the peak; without it that of the device is looked up, and a CPU has none.
        precision: of matrix products.
        world: processes, each on a device of its own, that share the operations.
    """

    def __init__(self, resources: ResourceConfig, device: torch.device, precision: str, world: int = 1):
        found = peak_of(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None
        peak = found if resources.peak_tflops is None else resources.peak_tflops
        self.peak_tflops = None if peak is None else peak * world

    def metrics(self, flops: int, seconds: float) -> dict[str, float]:
        """`update_seconds`; `tflops`, 10^12 counted operations per second of all processes; `mfu`, where a peak is
        known, their share of it: the model FLOPs utilisation."""
        tflops = flops / max(seconds, 1e-9) / 1e12
        row = {"update_seconds": seconds, "tflops": tflops}
        return row if self.peak_tflops is None else {**row, "mfu": tflops / self.peak_tflops}
