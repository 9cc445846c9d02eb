import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from counter_env import play_counter
from minari_files import write_minari_dataset
from recordings import line, stamped, write_film, write_lerobot, write_sums, write_vpt

from dreamer4.data.importers import sums as sums_module
from dreamer4.data.importers.canvas import Canvas
from dreamer4.data.importers.importer import Options
from dreamer4.data.importers.registry import importer
from dreamer4.data.importers.sums import NAME, SourceSums
from dreamer4.errors import DataError

MAKERS: dict[str, Callable[[Path], object]] = {
    "vpt": lambda root: write_vpt(root, [line(t) for t in range(3)], name="a"),
    "video": lambda root: write_film(root / "a.mp4", (stamped(t) for t in range(3))),
    "lerobot": lambda root: write_lerobot(root, (6, 4)),
    "gymnasium": play_counter,
    "minari": lambda root: write_minari_dataset(root, "arrow", jpeg=False, lengths=(5, 3)),
}

UNREAD = {NAME, "a-options.json", "stats.json"}  # of VPT and LeRobot


@pytest.mark.parametrize("family", MAKERS)
def test_every_file_that_a_source_is_read_from_is_proven(tmp_path, family):
    """A flipped bit in any file is met by at least one source; negative control: whole, none is met."""
    root = tmp_path / "in"
    root.mkdir()
    MAKERS[family](root)
    write_sums(root)
    reader = importer(family, root, Options(canvas=Canvas(16, 24)))
    SourceSums(root).verify(path for source in reader.sources() for path in reader.files(source))
    for path in [path for path in root.rglob("*") if path.is_file() and path.name not in UNREAD]:
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(DataError, match=f"{path.name}' has other bytes than .*SHA256SUMS' says"):
            SourceSums(root).verify(file for source in reader.sources() for file in reader.files(source))
        path.write_bytes(whole)


def test_a_file_that_sources_share_is_read_once(tmp_path, monkeypatch):
    """Also a damaged one: with `--keep-going` each of its sources is tried."""
    (tmp_path / "a").write_bytes(b"abc")
    write_sums(tmp_path)
    (tmp_path / "a").write_bytes(b"abd")
    read: list[Path] = []
    monkeypatch.setattr(sums_module, "digest_of", lambda path: read.append(path) or "0" * 64)
    sums = SourceSums(tmp_path)
    for _ in range(3):
        with pytest.raises(DataError, match="a' has other bytes"):
            sums.verify([tmp_path / "a"])
    assert read == [tmp_path / "a"]


def test_without_sums_nothing_is_asked(tmp_path):
    SourceSums(tmp_path).verify([tmp_path / "not there"])


@pytest.mark.parametrize(
    ("sums", "message"),
    [
        ("", "is empty"),
        ("what is this", "line 1 is no line of sha256sum: 'what is this'"),
        (f"{hashlib.sha256(b'abc').hexdigest()}  b\n", "a' is not in .*SHA256SUMS'"),
        (f"{hashlib.sha256(b'abd').hexdigest()}  a\n", "a' has other bytes"),
    ],
)
def test_sums_that_prove_nothing_are_refused(tmp_path, sums, message):
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / NAME).write_text(sums)
    with pytest.raises(DataError, match=message):
        SourceSums(tmp_path).verify([tmp_path / "a"])


def test_names_are_relative_to_the_sums(tmp_path):
    """Written with `find . | xargs sha256sum` and in binary mode; for one file that is imported alone as well."""
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / NAME).write_text(f"{hashlib.sha256(b'abc').hexdigest()} *./a\n")
    SourceSums(tmp_path).verify([tmp_path / "a"])
    SourceSums(tmp_path / "a").verify([tmp_path / "a"])
