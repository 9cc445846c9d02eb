import json
import os
import pickle
import shutil
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from dreamer4 import checkpoint
from dreamer4.checkpoint import Checkpoints, load_tensors, save_tensors
from dreamer4.errors import CheckpointError, RunError

CONFIG = {"model": {"width": 64, "sizes": (1, 2)}, "seed": 0}


def save(store: Checkpoints, step: int) -> None:
    store.save(step, {"w": torch.full((64,), float(step))}, {"step": step}, CONFIG)


class Killed(BaseException):
    """Stands for a process that ends in the middle of a save."""


class Exploit:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_tensors_come_back_bit_for_bit_whatever_their_layout(tmp_path):
    base = torch.randn(4, 6)
    tensors = {
        "tied": base,
        "tied_too": base,
        "row": base[1],
        "transposed": base.T,
        "half": base.bfloat16(),
        "scalar": torch.tensor(3),
        "flags": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "empty_too": torch.zeros(0),
    }
    save_tensors(tmp_path / "x.safetensors", tensors, {"model": "tokenizer"})
    loaded = load_tensors(tmp_path / "x.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor), name


def test_nested_state_comes_back_with_its_types(tmp_path):
    state = {
        "state": {0: {"step": torch.tensor(1.0)}, 1: {}},
        "0": "text key",
        "groups": [{"betas": (0.9, 0.95), "lr": 1e-300, "params": [0, 1]}],
        "none": None,
        "flag": True,
        "counts": [1, -2.5, [], ()],
        "a.b": torch.zeros(1),
        "a": {"b": torch.ones(1)},
    }
    store = Checkpoints(tmp_path)
    store.save(3, OrderedDict(w=torch.ones(2)), state, CONFIG)
    found = store.load(config=CONFIG)
    assert found.step == 3
    assert found.config == json.loads(json.dumps(CONFIG))
    assert torch.equal(found.weights["w"], torch.ones(2))
    for key in ("0", "groups", "none", "flag", "counts"):
        assert found.state[key] == state[key]
    assert isinstance(found.state["groups"][0]["betas"], tuple)
    assert list(found.state["state"]) == [0, 1]
    assert found.state["state"][0]["step"] == 1
    assert found.state["a.b"] == 0
    assert found.state["a"]["b"] == 1


def test_training_resumed_from_a_checkpoint_is_bit_identical(tmp_path):
    def training():
        module = nn.Linear(3, 2)
        nn.init.constant_(module.weight, 0.1)
        nn.init.zeros_(module.bias)
        return module, torch.optim.AdamW(module.parameters(), lr=0.1)

    def steps(module, optimizer, first, last):
        for step in range(first, last):
            optimizer.zero_grad()
            module(torch.arange(3.0) + step).square().sum().backward()
            optimizer.step()

    straight, optimizer = training()
    steps(straight, optimizer, 0, 4)
    store = Checkpoints(tmp_path)
    store.save(4, straight.state_dict(), {"optimizer": optimizer.state_dict()}, CONFIG)
    steps(straight, optimizer, 4, 8)

    resumed, optimizer = training()
    found = store.load(4)
    shutil.rmtree(tmp_path)
    resumed.load_state_dict(found.weights)
    optimizer.load_state_dict(found.state["optimizer"])
    steps(resumed, optimizer, 4, 8)
    assert torch.equal(straight.weight, resumed.weight)
    assert torch.equal(straight.bias, resumed.bias)


@pytest.mark.parametrize("state", [{"array": object()}, {"x": [{1.5: 0}]}])
def test_state_that_json_would_change_is_refused_before_anything_is_written(tmp_path, state):
    with pytest.raises(TypeError, match="state"):
        Checkpoints(tmp_path).save(1, {}, state, CONFIG)
    assert list(tmp_path.iterdir()) == []


def test_only_the_newest_are_kept(tmp_path):
    store = Checkpoints(tmp_path / "policy", keep=2)
    assert store.latest() is None
    for step in (5, 10, 123456789):
        save(store, step)
    assert store.steps() == [10, 123456789]
    assert store.load().weights["w"][0] == 123456789
    assert store.load(10).state == {"step": 10}
    assert len(list((tmp_path / "policy").iterdir())) == 2


def test_saving_a_step_again_replaces_it(tmp_path):
    store = Checkpoints(tmp_path)
    save(store, 1)
    store.save(1, {"w": torch.zeros(1)}, {}, {})
    assert store.steps() == [1]
    assert torch.equal(store.load(1, {}).weights["w"], torch.zeros(1))


@pytest.mark.parametrize("again", [False, True], ids=["next step", "same step"])
def test_a_writer_killed_at_any_moment_leaves_a_whole_checkpoint(tmp_path, monkeypatch, again):
    """Dies at every single rename, flush and removal (half done); `keep=1` is the hardest case."""
    remove = shutil.rmtree
    for moment in range(100):
        store = Checkpoints(tmp_path / str(moment), keep=1)
        save(store, 1)
        calls = 0

        def dying(function, moment=moment):
            def call(target, *args, **options):
                nonlocal calls
                calls += 1
                if calls > moment:
                    if function is remove and target.exists():
                        next(target.iterdir()).unlink()
                    raise Killed
                return function(target, *args, **options)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", dying(Path.rename))
            patch.setattr(checkpoint, "flush", dying(checkpoint.flush))
            patch.setattr(checkpoint.shutil, "rmtree", dying(remove))
            try:
                save(store, 1 if again else 2)
                survived = True
            except Killed:
                survived = False
        assert store.load().weights["w"][0] in (1, 2)
        for step in store.steps():
            assert store.load(step, CONFIG).state == {"step": step}
        save(store, 3)
        assert [path.name for path in store.folder.iterdir()] == ["00000003"]
        if survived:
            break
    assert survived
    assert moment >= 5


def test_half_written_folder_is_ignored_and_removed_at_the_next_save(tmp_path):
    store = Checkpoints(tmp_path)
    save(store, 1)
    (tmp_path / ".partial-0123").mkdir()
    (tmp_path / ".partial-0123" / "weights.safetensors").write_bytes(b"half")
    assert store.steps() == [1]
    save(store, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000001", "00000002"]


def test_full_disk_is_one_sentence_and_keeps_the_former_checkpoint(tmp_path, monkeypatch):
    store = Checkpoints(tmp_path)
    save(store, 1)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "flush", full_disk)
    with pytest.raises(RunError, match=r"checkpoint 2 .*No space left"):
        save(store, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["00000001"]
    assert store.load(config=CONFIG).step == 1


@pytest.mark.parametrize("name", checkpoint.NUMBERS)
@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "lengthened"])
def test_damaged_file_is_refused_and_named(tmp_path, name, damage):
    store = Checkpoints(tmp_path)
    store.save(1, {"w": torch.randn(64)}, {"moment": torch.randn(64)}, CONFIG)
    path = tmp_path / "00000001" / name
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "flipped":
        data[-10] ^= 1
        path.write_bytes(data)
    else:
        path.write_bytes(data[:-10] if damage == "cut" else data + b"\0")
    with pytest.raises(CheckpointError, match=name):
        store.load()


def test_single_flipped_bit_is_invisible_without_the_checksum(tmp_path):
    """Negative control: the format alone would load the damaged number."""
    save_tensors(tmp_path / "x.safetensors", {"w": torch.zeros(8)})
    data = bytearray((tmp_path / "x.safetensors").read_bytes())
    data[-10] ^= 1
    (tmp_path / "x.safetensors").write_bytes(data)
    assert load_tensors(tmp_path / "x.safetensors")["w"].any()


@pytest.mark.parametrize("record", [b"", b"[]", b"{}", b'{"step": 1, "config": {}, "files": {}}'])
def test_damaged_record_is_refused_and_named(tmp_path, record):
    store = Checkpoints(tmp_path)
    save(store, 1)
    (tmp_path / "00000001" / "checkpoint.json").write_bytes(record)
    with pytest.raises(CheckpointError, match=r"checkpoint\.json"):
        store.load()


def test_absent_checkpoints_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*nowhere"):
        Checkpoints(tmp_path / "nowhere").load()
    with pytest.raises(CheckpointError, match="00000007"):
        Checkpoints(tmp_path).load(7)


def test_other_config_is_refused_with_the_keys_that_differ(tmp_path):
    store = Checkpoints(tmp_path)
    save(store, 1)
    other = {"model": {"width": 32, "sizes": [1, 3], "depth": 4}, "seed": 0}
    with pytest.raises(CheckpointError) as error:
        store.load(config=other)
    message = str(error.value)
    assert "model.width is 64 there and 32 here" in message
    assert "model.sizes.1 is 2 there and 3 here" in message
    assert "model.depth is absent there and 4 here" in message
    assert "seed" not in message


def test_config_that_differs_only_by_an_empty_part_is_refused(tmp_path):
    Checkpoints(tmp_path).save(1, {}, {}, {"tasks": []})
    with pytest.raises(CheckpointError, match=r"tasks is \[\] there and absent here"):
        Checkpoints(tmp_path).load(config={})


def test_pickle_is_refused_and_its_code_does_not_run(tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "weights.safetensors"
    for write in (lambda: path.write_bytes(pickle.dumps(Exploit(marker))), lambda: torch.save(Exploit(marker), path)):
        write()
        with pytest.raises(CheckpointError, match=r"weights\.safetensors"):
            load_tensors(path)
        assert not marker.exists()
    pickle.loads(pickle.dumps(Exploit(marker)))
    assert marker.exists(), "negative control: the pickle does harm when it is loaded"


@pytest.mark.parametrize("size", [0, 4, 20])
def test_truncated_tensor_file_is_named(tmp_path, size):
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"w": torch.zeros(8)})
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        load_tensors(path)
    with pytest.raises(CheckpointError, match=r"absent\.safetensors"):
        load_tensors(tmp_path / "absent.safetensors")


def test_who_may_not_write_any_more_publishes_nothing(tmp_path):
    """Asked when all is written, so that the time between the question and the name is short."""
    checkpoints, asked = Checkpoints(tmp_path), []

    def refuse() -> None:
        asked.append([path.name for path in tmp_path.glob(".partial-*/*")])
        raise RunError("somebody else writes")

    checkpoints.save(1, {"w": torch.ones(2)}, {}, {})
    with pytest.raises(RunError, match="somebody else writes"):
        checkpoints.save(2, {"w": torch.ones(2)}, {}, {}, refuse)
    assert checkpoints.steps() == [1]
    assert "checkpoint.json" in asked[0]
    assert [path.name for path in tmp_path.iterdir()] == ["00000001"]
