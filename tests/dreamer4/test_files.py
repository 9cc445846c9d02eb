import json

import pytest

from dreamer4 import files
from dreamer4.errors import RunError
from dreamer4.files import append_line, ensure_writable, read_json, write_atomic, write_json


def test_written_file_holds_exactly_the_bytes_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "new" / "file.bin"
    write_atomic(path, b"first")
    write_atomic(path, b"second")
    assert path.read_bytes() == b"second"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.bin"]


def test_failed_write_keeps_the_former_file_and_leaves_no_temporary_one(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, b"former")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "flush", full_disk)
    with pytest.raises(RunError, match=r"file.*No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"former"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_json_keeps_the_order_of_keys(tmp_path):
    obj = {"z": 1, "a": [0.1, None, "text"]}
    write_json(tmp_path / "x.json", obj)
    assert list(read_json(tmp_path / "x.json").items()) == list(obj.items())


@pytest.mark.parametrize("content", [None, b"", b'{"half": ', b"\xff\xfe\x00"])
def test_missing_or_broken_json_is_named(tmp_path, content):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RunError, match=r"config\.json"):
        read_json(path)


def test_lines_are_appended_and_a_torn_line_stays_apart(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_line(path, json.dumps({"step": 1}))
    with open(path, "a") as file:
        file.write('{"ste')
    append_line(path, json.dumps({"step": 2}))
    append_line(path, json.dumps({"step": 3}))
    assert path.read_text() == '{"step": 1}\n{"ste\n{"step": 2}\n{"step": 3}\n'


def test_unwritable_folder_is_named(tmp_path):
    ensure_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "occupied").write_text("a file")
    for use in (
        lambda: ensure_writable(tmp_path / "occupied"),
        lambda: write_atomic(tmp_path / "occupied" / "x", b""),
        lambda: append_line(tmp_path / "occupied" / "x", ""),
    ):
        with pytest.raises(RunError, match="occupied"):
            use()
