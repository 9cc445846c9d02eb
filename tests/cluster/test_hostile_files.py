"""Checkpoints, datasets and configs are data: whatever is put in their place is refused, and never executed.

Every hostile content is first given to somebody who does execute it, so that none is harmless by mistake.
"""

import ast
import io
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hostile import Bomb, bomb, exploded
from test_imports import modules, uses
from worlds import FRAME, SPACE, walk, write_walks

from actors.inspection import load_inspection
from cluster.policy.ledger import read_ledger
from cluster.registry.registry import list_runs, open_registry
from cluster.run import Run, read_config
from cluster.telemetry import read_metrics
from dreamer4.checkpoint import NUMBERS, RECORD, Checkpoints, load_tensors
from dreamer4.data.episodes import EpisodeDataset
from dreamer4.data.index import read_index
from dreamer4.data.latents import LatentDataset, finish_latents, write_latents
from dreamer4.data.schema import MANIFEST, Recording
from dreamer4.errors import CheckpointError, DataError, DreamerError, RunError
from dreamer4.files import read_json, write_json
from dreamer4.perceptual import Perceptual


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """Where a bomb leaves its mark."""
    return tmp_path / "mark"


def torch_file(mark: Path) -> bytes:
    """What `torch.save` writes."""
    buffer = io.BytesIO()
    torch.save({"weights": Bomb(mark)}, buffer)
    return buffer.getvalue()


def numpy_file(mark: Path) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, pictures=np.array([Bomb(mark)], dtype=object))  # type: ignore[arg-type]
    return buffer.getvalue()


def arrow_file(mark: Path) -> bytes:
    """A valid Arrow file whose column says that its Python type is to be unpickled (CVE-2023-47248)."""
    metadata = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": bomb(mark)}
    column = pa.array([b"0123"], pa.binary(4))
    schema = pa.schema([pa.field("frame", column.type, metadata=metadata)])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as file:
        file.write_batch(pa.record_batch([column], schema=schema))
    return sink.getvalue().to_pybytes()


def unpickle_arrow(content: bytes) -> None:
    """What pyarrow did before 14.0.1."""
    (field,) = pa.ipc.open_file(pa.py_buffer(content)).schema
    assert field.metadata[b"ARROW:extension:name"] == b"arrow.py_extension_type"
    pickle.loads(field.metadata[b"ARROW:extension:metadata"])


CONTENTS: dict[str, tuple[Callable[[Path], bytes], Callable[[bytes], object]]] = {
    "pickle": (bomb, pickle.loads),
    "torch": (torch_file, lambda content: torch.load(io.BytesIO(content), weights_only=False)),
    "numpy": (numpy_file, lambda content: np.load(io.BytesIO(content), allow_pickle=True)["pictures"]),
    "arrow": (arrow_file, unpickle_arrow),
}


@pytest.fixture(params=CONTENTS)
def content(request: pytest.FixtureRequest, mark: Path) -> bytes:
    """A hostile file, which has been seen to work."""
    make, execute = CONTENTS[request.param]
    content = make(mark)
    execute(content)
    assert exploded(mark), "the bomb is a dud"
    return content


# checkpoints


@pytest.mark.parametrize("name", NUMBERS)
def test_checkpoint_with_a_bomb_for_a_tensor_file_is_refused(tmp_path, mark, content, name):
    """Also where the record was changed with it, so that size and checksum are right."""
    checkpoints = Checkpoints(tmp_path / "tokenizer")
    folder = checkpoints.save(3, {"w": torch.ones(2)}, {"optimizer": {0: torch.ones(2)}}, {})
    record = read_json(folder / RECORD)
    record["files"][name] = {"bytes": len(content), "crc32": zlib.crc32(content)}
    write_json(folder / RECORD, record)
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name}' is cut short or not a safetensors file"):
        checkpoints.load()
    with pytest.raises(CheckpointError, match=name):
        load_tensors(folder / name)
    assert not exploded(mark)


def test_checkpoint_with_a_bomb_for_its_record_is_refused(tmp_path, mark, content):
    checkpoints = Checkpoints(tmp_path / "tokenizer")
    folder = checkpoints.save(3, {"w": torch.ones(2)}, {}, {})
    (folder / RECORD).write_bytes(content)
    with pytest.raises(CheckpointError, match="is not JSON"):
        checkpoints.load()
    assert not exploded(mark)


@pytest.mark.parametrize("state", [{"pickle": "gANj"}, {"py/reduce": [{"py/type": "os.mkdir"}]}, {"dict": 5}, "abc"])
def test_checkpoint_whose_state_names_something_else_than_data_is_data_or_refused(tmp_path, state):
    """There is no key that means code."""
    checkpoints = Checkpoints(tmp_path / "tokenizer")
    folder = checkpoints.save(3, {"w": torch.ones(2)}, {}, {})
    write_json(folder / RECORD, {**read_json(folder / RECORD), "state": state})
    try:
        kinds = {type(part) for part in parts(checkpoints.load().state)}
    except CheckpointError:
        return
    assert kinds <= {dict, list, tuple, str, int, float, bool, type(None)}


def parts(value: object) -> list[object]:
    children = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    return [value, *(part for child in children for part in parts(child))]


def test_perceptual_weights_with_a_bomb_are_refused(tmp_path, mark, content):
    """The one file that may come from elsewhere in torch's own format."""
    for name in ("vgg.pth", "lpips.pth"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"vgg\.pth"):
        Perceptual.load(tmp_path / "vgg.pth", tmp_path / "lpips.pth")
    assert not exploded(mark)


# datasets


@pytest.fixture
def dataset(tmp_path: Path) -> EpisodeDataset:
    return write_walks(tmp_path / "data", [walk(index) for index in range(3)])


@pytest.mark.parametrize("verify", [False, True])
def test_dataset_with_a_bomb_for_a_shard_is_refused(dataset, mark, content, verify):
    """The manifest agrees with it, its index doesn't."""
    manifest = read_json(Path(dataset.folder) / MANIFEST)
    shard = manifest["shards"][0]
    shard.update(bytes=len(content), crc32=zlib.crc32(content))
    write_json(Path(dataset.folder) / MANIFEST, manifest)
    (Path(dataset.folder) / shard["file"]).write_bytes(content)
    with pytest.raises(DataError, match=f"{shard['file']}|{shard['index']}"):
        EpisodeDataset.open(dataset.folder, verify).episode(0)
    assert not exploded(mark)


def test_bomb_in_the_type_of_a_column_is_left_alone(tmp_path, mark):
    """The file is valid, so it is opened, and its bomb is a comment; but it has no place among ours."""
    content = arrow_file(mark)
    assert pa.ipc.open_file(pa.py_buffer(content)).read_all()["frame"].to_pylist() == [b"0123"]
    with pytest.raises(DataError, match="is not the index of a shard"):
        read_index(content, "bomb", Recording("walk", FRAME, SPACE, ("even",)), 1, 1, len(content))
    assert not exploded(mark)


def test_latents_with_a_bomb_are_refused(dataset, tmp_path, mark, content):
    folder = tmp_path / "latents"
    for index, shard in enumerate(dataset.manifest.shards):
        write_latents(folder, index, np.zeros((shard.frames, 2, 3), np.float32), "model")
    finish_latents(folder, dataset, "model")
    whole = read_json(folder / MANIFEST)
    shard = whole["shards"][0]
    (folder / shard["file"]).write_bytes(content)
    write_json(folder / MANIFEST, {**whole, "shards": [{**shard, "bytes": len(content)}, *whole["shards"][1:]]})
    with pytest.raises(DataError, match=shard["file"]):
        LatentDataset.open(folder, dataset).latents(0, 1)
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(DataError, match=MANIFEST):
        LatentDataset.open(folder, dataset)
    assert not exploded(mark)


def test_manifest_that_is_a_bomb_is_refused(dataset, mark, content):
    (Path(dataset.folder) / MANIFEST).write_bytes(content)
    with pytest.raises(DataError, match=f"{MANIFEST}' is not JSON"):
        EpisodeDataset.open(dataset.folder)
    assert not exploded(mark)


# what else lies in a run directory


def test_config_that_is_a_bomb_is_refused(tmp_path, mark, content):
    (tmp_path / "config.json").write_bytes(content)
    for read in (read_config, Run.attach, Run.open):
        with pytest.raises(RunError, match=r"config\.json' is not JSON"):
            read(tmp_path)
    assert not exploded(mark)


def test_config_that_names_code_is_refused(tmp_path, mark):
    write_json(tmp_path / "config.json", {"env": "x", "__reduce__": ["os.mkdir", [str(mark)]]})
    with pytest.raises(RunError, match="unknown key '__reduce__'"):
        read_config(tmp_path)


def test_logs_and_lease_that_are_bombs_execute_nothing(tmp_path, mark, content, monkeypatch):
    monkeypatch.delenv("DREAMER4_REGISTRY", raising=False)
    (tmp_path / "config.json").touch()
    for name in ("ledger.jsonl", "metrics.jsonl"):
        (tmp_path / name).write_bytes(content + b"\n")
    assert read_ledger(tmp_path) == []
    with pytest.raises(RunError, match="is not JSON"):
        read_metrics(tmp_path / "metrics.jsonl")
    open_registry(tmp_path).acquire("us", 10)
    lease = [file for file in tmp_path.rglob("*") if file.is_file() and "lease" in str(file.relative_to(tmp_path))]
    assert lease
    for file in lease:
        file.write_bytes(content)
    (found,) = list_runs(tmp_path)
    assert "error" in found
    with pytest.raises(DreamerError):
        open_registry(tmp_path).acquire("them", 10)
    assert not exploded(mark)


def test_pictures_that_are_a_bomb_are_refused(tmp_path, mark, content):
    write_json(tmp_path / "inspection.json", {"pictures": {"$array": "pictures"}})
    (tmp_path / "arrays.npz").write_bytes(content)
    with pytest.raises(RunError, match=r"can't read '.*arrays\.npz'"):
        load_inspection(tmp_path)
    assert not exploded(mark)


# the sources: nobody reads such things in a way that could execute them

UNPICKLING = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "torch.distributed.checkpoint"}


def dangers(source: str) -> set[str]:
    """What in a file could execute what it reads."""
    found = {name for _, name in uses(source) if any(name == bad or name.startswith(f"{bad}.") for bad in UNPICKLING)}
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if called in ("eval", "exec", "compile", "yaml.load", "yaml.unsafe_load"):
            found.add(called)
        elif called == "torch.load" and given.get("weights_only") != "True":
            found.add("torch.load without weights_only=True")
        elif called == "np.load" and given.get("allow_pickle", "False") != "False":
            found.add("np.load with pickles")
        elif called.startswith("subprocess.") and given.get("shell", "False") != "False":
            found.add("a shell")
    return found


@pytest.mark.parametrize("package", ["dreamer4", "learners", "actors", "cluster"])
def test_nothing_of_ours_executes_what_it_reads(package):
    found = {name: dangers(path.read_text()) for name, path in modules(package).items()}
    assert {name: what for name, what in found.items() if what} == {}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from torch.distributed.checkpoint import load",
        "import torch\ntorch.load(f)",
        "import torch\ntorch.load(f, weights_only=False)",
        "import numpy as np\nnp.load(f, allow_pickle=True)",
        "eval(text)",
        "import subprocess\nsubprocess.run(text, shell=True)",
    ],
)
def test_what_would_execute_it_is_found(line):
    assert dangers(line)
