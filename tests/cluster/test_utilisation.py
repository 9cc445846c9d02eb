"""Every trainer says what it computes per second, and what share of a known peak that is."""

import math

import pytest
import torch
from trained import opened, recorded

from cluster.config import ResourceConfig, configure
from cluster.presets import smoke
from cluster.pretrain import StageTrainer
from cluster.utilisation import TIMED, Utilisation, peak_of
from dreamer4.errors import ConfigError

__all__ = ["opened", "recorded"]
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.0),
        ("NVIDIA H100 80GB HBM3", "float32", 67.0),
        ("NVIDIA H100 PCIe", "bfloat16", 756.0),
        ("NVIDIA A100-SXM4-40GB", "bfloat16", 312.0),
        ("NVIDIA L4", "bfloat16", 121.0),
        ("NVIDIA L40S", "bfloat16", 362.0),
        ("NVIDIA L40", "bfloat16", None),
        ("Another One 4000", "bfloat16", None),
    ],
)
def test_peaks_are_known_by_the_gpus_name(name, precision, peak):
    assert peak_of(name, precision) == peak


def test_the_share_is_that_of_all_devices():
    told = Utilisation(ResourceConfig(peak_tflops=2.0), CPU, "float32", world=4).metrics(8 * 10**12, 2.0)
    assert told == {"update_seconds": 2.0, "tflops": 4.0, "mfu": 0.5}
    assert tuple(told) == TIMED


def test_a_cpu_has_no_peak():
    told = Utilisation(ResourceConfig(), CPU, "float32").metrics(10**12, 0.0)
    assert "mfu" not in told and math.isfinite(told["tflops"]), "a clock may stand still"


def test_a_trainer_tells_it_with_every_update(opened):
    run = opened("resources.peak_tflops=0.5")
    trainer = StageTrainer(str(run.path), "tokenizer")
    rows = [*trainer.portion(1), *trainer.portion(1)]
    for index, row in enumerate(rows):
        assert row["tflops"] * row["update_seconds"] * 1e12 == pytest.approx(trainer.learner.estimate_flops(index))
        assert row["mfu"] == row["tflops"] / 0.5 > 0


def test_a_peak_of_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"peak_tflops must be greater than 0, got 0"):
        configure(smoke(), ["resources.peak_tflops=0"])
