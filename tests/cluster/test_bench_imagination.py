"""`dreamer4 bench imagination`: what it promises to other programs, at a size that takes a second."""

from dataclasses import replace

import pytest
import torch

from cluster.bench import imagination as bench
from cluster.bench.imagination_floor import Floor
from cluster.presets import laptop
from dreamer4.errors import ConfigError

KEYS = {
    "frames_per_s",
    "params",
    "batch",
    "window",
    "sampling_steps",
    "history_cost_ratio_4x",
    "matmul_gflops",
    "achieved_gflops",
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything small, the roofline's matrices too."""
    config = laptop()
    config = replace(config, dynamics=replace(config.dynamics, width=16, hidden=32))
    monkeypatch.setattr(bench, "config_of", lambda name, known: config)
    monkeypatch.setattr("cluster.bench.measure.SIZES", {"cpu": 32})
    monkeypatch.setattr("cluster.bench.measure.COPIED", {"cpu": 1 << 12})


@pytest.mark.usefixtures("small")
def test_a_record_has_the_keys_that_other_programs_read_and_a_table(capsys: pytest.CaptureFixture, tmp_path):
    record = bench.bench_imagination("laptop", "cpu", "float32", "eager", [1, 2], 2, 1, 1, tmp_path)
    assert record.keys() >= KEYS
    assert record["batch"] == 2 and set(record["batches"]) == {"1", "2"}
    assert record["batches"]["2"]["over_floor"] > 0
    assert record["gflop_per_frame"] > 0 and record["decoded_frames_per_s"] > 0
    assert "ratio" in capsys.readouterr().out
    assert (tmp_path / "imagination.trace.json").exists() and (tmp_path / "imagination.txt").exists()


@torch.no_grad()
def test_the_floors_cache_remembers_commits_and_denoising_leaves_no_trace():
    """A floor that did less than it says would be no fair comparison."""
    config = laptop().dynamics
    floor, other = Floor(config, 1), Floor(config, 1)
    other.load_state_dict(floor.state_dict())
    z, action = torch.randn(1, config.latents, config.channels), torch.zeros(1, dtype=torch.long)
    for one, looks in ((floor, 0), (other, 3)):
        for _ in range(looks):
            one(torch.randn_like(z), action, 0)
        one.observe(z[:, None], action[:, None])
    assert torch.equal(floor(z, action, 0), other(z, action, 0))
    assert not torch.allclose(floor(z, action, 0), Floor(config, 1)(z, action, 0))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("nope", "known: common, crafter, .*, paper-size, smoke"), ("papersize", "did you mean 'paper-size'")],
)
def test_unknown_sizes_are_told_all_that_the_help_names(name, sentence):
    with pytest.raises(ConfigError, match=f"there is no preset '{name}'; {sentence}"):
        bench.workload(name, "cpu", "float32", "eager")


def test_impossible_options_are_refused():
    with pytest.raises(ConfigError, match="start at 1"):
        bench.bench_imagination("common", "cpu", "float32", "eager", [0], 1, 1, 1, None)
