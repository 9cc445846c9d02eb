"""`dreamer4 bench training`, on the smallest sizes: what it computes, and that its yardstick is sound."""

import json
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cluster.bench.floor import FloorLearner
from cluster.bench.training import MadeUpClips, bootstrapping, common, new_learner, workload
from cluster.main import main
from dreamer4.dynamics import Dynamics
from dreamer4.rng import generator
from dreamer4.transformer import parameter_count
from learners.dynamics import DynamicsLearner
from learners.parallel import ParallelConfig

pytestmark = pytest.mark.usefixtures("interrupts")
SMALL = ["--preset", "laptop", "--batch", "4", "--length", "2", "--turns", "1"]
CPU = torch.device("cpu")


def tiny_workload(share: float = 0.25):
    work = workload("laptop", "dynamics", batch=4, length=3)
    return bootstrapping(work, share)


def floor_of(work) -> FloorLearner:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FloorLearner(work.config.dynamics, work.config.shortcut, CPU)


@pytest.mark.parametrize("stage", ["tokenizer", "dynamics", "agent"])
def test_every_stage_is_measured_and_written(stage, tmp_path, capsys):
    file = tmp_path / "record.json"
    assert main(["bench", "training", *SMALL, "--stage", stage, "--json", str(file)]) == 0
    record = json.loads(file.read_text())
    assert (record["stage"], record["batch"], record["length"]) == (stage, 4, 2)
    assert record["mfu"] == pytest.approx(record["achieved_gflops"] / record["matmul_gflops"])
    assert record["frames_per_s"] == pytest.approx(8 / (record["update_ms"] / 1000))
    assert ("floor" in record) == (stage == "dynamics")
    assert "model FLOPs utilisation" in capsys.readouterr().out


def test_bfloat16_and_checkpointing_as_on_a_gpu(tmp_path):
    file = tmp_path / "record.json"
    options = ["--precision", "bfloat16", "--checkpointing", "--json", str(file), "--profile", str(tmp_path)]
    assert main(["bench", "training", *SMALL, "--stage", "agent", *options]) == 0
    assert json.loads(file.read_text())["precision"] == "bfloat16"
    assert json.loads((tmp_path / "laptop-agent.trace.json").read_text())["traceEvents"]
    lines = (tmp_path / "laptop-agent.txt").read_text().splitlines()
    assert any(line.startswith("aten::") for line in lines) and len(lines) < 60


def test_the_common_workload_has_the_sizes_that_others_were_measured_at():
    config, dynamics = common(), common().dynamics
    with torch.device("meta"):
        assert 8e6 < parameter_count([Dynamics(replace(dynamics, latents=16, channels=32))]) < 9e6
    assert (dynamics.width, dynamics.depth, dynamics.time_every, dynamics.registers) == (256, 8, 4, 4)
    assert (config.tokenizer.frame, config.tokenizer.patch) == ((64, 64, 3), 8)
    work = workload("common", "dynamics")
    assert (work.batch, work.length, work.config.dynamics.latents, work.config.dynamics.channels) == (4, 16, 16, 32)


def test_the_paper_size_is_built_without_a_machine_for_it():
    with torch.device("meta"):
        assert parameter_count([Dynamics(workload("minecraft", "dynamics").config.dynamics)]) > 1.5e9


@pytest.mark.parametrize("share", [0.25, 0.0])
def test_the_floor_computes_what_is_claimed(share):
    """With attention as plain products, which torch counts: to the last operation."""
    work = tiny_workload(share)
    floor, clip = floor_of(work), MadeUpClips(work.config, "dynamics").batch(0, 4, 3)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        floor.step(clip, generator("floor", 0))
    assert counter.get_total_flops() == floor.estimate_flops(4, 3)
    assert floor_of(tiny_workload(0.5)).estimate_flops(4, 3) != floor.estimate_flops(4, 3)


def test_the_floor_learns():
    """A yardstick that computed nothing useful would be fast."""
    work = tiny_workload()
    floor, clip = floor_of(work), MadeUpClips(work.config, "dynamics").batch(0, 4, 3)
    losses = [floor.step(clip, generator("floor", index)) for index in range(40)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


@pytest.mark.parametrize("share, teachers", [(0.25, 1), (0.0, 0)])
def test_the_asked_share_is_bootstrapped(share, teachers):
    work = tiny_workload(share)
    learner = new_learner(work)
    assert isinstance(learner, DynamicsLearner)
    calls = []
    learner.dynamics.register_forward_hook(lambda module, inputs, output: calls.append(inputs[0].shape[0]))
    learner.step(0)
    assert calls == [*(2 * teachers * [1]), 4]


def test_layers_may_be_compiled(monkeypatch):
    """That the option reaches the learner; compiling itself takes a minute."""
    seen = []
    monkeypatch.setattr(torch, "compile", lambda function: seen.append(function) or function)
    work = workload("laptop", "dynamics", parallel=ParallelConfig(compile=True), batch=2, length=2)
    new_learner(work)
    assert len(seen) == work.config.dynamics.depth


@pytest.mark.parametrize(
    "options, message",
    [
        (["--preset", "lapdog"], "laptop"),
        (["--preset", "nope"], "there is no preset 'nope'; known: common, crafter, "),
        (["--batch", "0"], "--batch"),
        (["--turns", "0"], "--turns"),
        (["--preset", "laptop", "seed=1"], "takes no settings"),
    ],
)
def test_impossible_options_are_named(options, message, capsys):
    assert main(["bench", "training", *options]) == 2
    assert message in capsys.readouterr().err
