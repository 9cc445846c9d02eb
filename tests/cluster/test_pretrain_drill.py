"""Stages 1 to 3 on real clusters, as a user starts them, while trainers, a node or the driver are killed."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from trained import STEPS, Killer, alone, assert_as_alone, opened, recorded, starts, wait_for_mid_interval

from cluster.local.cluster import LocalCluster, LocalNode
from cluster.run import Run
from cluster.telemetry import read_metrics

__all__ = ["alone", "opened", "recorded"]
pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.xdist_group("ray")]
ROOT = Path(__file__).parents[2]
SECONDS = 300  # that a stage may take, losses included


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """Two nodes with room for one trainer each."""
    with LocalCluster(dashboard=False) as made:
        for _ in range(2):
            made.add_node(cpus=1)
        yield made


@contextmanager
def training(cluster: LocalCluster, run: Run) -> Iterator[subprocess.Popen[bytes]]:
    """`dreamer4 train tokenizer` on the cluster, with its output beside the run; killed at the end of the block."""
    run.close()
    command = [sys.executable, "-m", "cluster.main", "train", "tokenizer", "--run", str(run.path)]
    with open(run.path.with_suffix(".log"), "ab") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=cluster.env(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def output(run: Run) -> str:
    return run.path.with_suffix(".log").read_text()


def finish(process: subprocess.Popen[bytes], run: Run) -> None:
    assert process.wait(timeout=SECONDS) == 0, output(run)[-3000:]


def test_the_first_trainer_killed(cluster: LocalCluster, alone, opened: Callable[..., Run]) -> None:
    """The one that writes; no sharding."""
    run = opened("resources.trainers=2")
    killer = Killer(run, rank=0)
    with training(cluster, run) as process:
        killer.start()
        finish(process, run)
    first, second, *_ = starts(run)
    assert (first["updates"], first["trainers"], second["trainers"]) == (0, 2, 2)
    assert 0 < second["updates"] < killer.logged < STEPS, "it was hit in mid-run, and updates were redone"
    assert f"2 trainers go on from update {second['updates']}" in output(run)
    assert_as_alone(run, alone)


def test_the_driver_killed_and_the_same_command_again(cluster: LocalCluster, alone, opened: Callable[..., Run]) -> None:
    run = opened("resources.trainers=2", "parallel.sharding=fsdp")
    with training(cluster, run) as process:
        logged = wait_for_mid_interval(run)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 0 < logged < STEPS and run.finished("tokenizer") is None
    with training(cluster, run) as process:
        finish(process, run)
    first, second = starts(run)
    assert first["updates"] == 0 < second["updates"] < logged, "updates were redone"
    assert_as_alone(run, alone)


def test_a_loss_that_is_no_number_is_one_sentence_and_nobody_tries_again(
    cluster: LocalCluster, opened: Callable[..., Run]
) -> None:
    run = opened("resources.trainers=2", "tokenizer_training.optim.lr=1e30", "tokenizer_training.optim.warmup_steps=0")
    with training(cluster, run) as process:
        assert process.wait(timeout=SECONDS) == 2
    (sentence,) = [line for line in output(run).splitlines() if "tokenizer_training.optim.lr" in line]
    assert "at step" in sentence and "Traceback" not in output(run)
    assert len(starts(run)) == 1


def node_of(cluster: LocalCluster, pid: int) -> LocalNode:
    """The node that a process belongs to."""
    ancestors = {parent.pid for parent in psutil.Process(pid).parents()}
    return next(node for node in cluster.nodes if node.process.pid in ancestors)


def test_a_lost_node_is_done_without(cluster: LocalCluster, alone, opened: Callable[..., Run]) -> None:
    """With `min_trainers` the other one goes on alone: not the same number, but the same batches. Comes last."""
    run = opened("resources.trainers=2", "resources.min_trainers=1", "parallel.sharding=fsdp")
    with training(cluster, run) as process:
        logged = wait_for_mid_interval(run)
        cluster.kill_node(node_of(cluster, starts(run)[-1]["processes"][1]))
        finish(process, run)
    first, *later = starts(run)
    assert first["trainers"] == 2 and later[-1]["trainers"] == 1
    assert 0 < later[-1]["updates"] < logged < STEPS, "it was hit in mid-run, and updates were redone"
    assert len(read_metrics(run.metrics_path, "tokenizer")) == STEPS
    assert_as_alone(run, alone)
