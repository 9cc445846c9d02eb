import tracemalloc
from pathlib import Path

import pytest
from counter_env import Counter, play
from minari_files import write_minari_dataset
from recordings import line, stamped, write_film, write_vpt

from dreamer4.data.importers.canvas import Canvas
from dreamer4.data.importers.importer import Options
from dreamer4.data.importers.record import RecordEpisodes
from dreamer4.data.importers.registry import importer

MAKERS = {
    "vpt": lambda root, frames: write_vpt(root, [line(t) for t in range(frames)], name="a"),
    "video": lambda root, frames: write_film(root / "a.mp4", (stamped(t) for t in range(frames))),
    "gymnasium": lambda root, frames: play(RecordEpisodes(Counter(frames - 1), root)),
    "minari": lambda root, frames: write_minari_dataset(root, "hdf5", jpeg=True, lengths=(frames - 1,)),
}


def peak(family: str, root: Path) -> int:
    """Bytes that Python and numpy have held at most while all parts were read and dropped."""
    reader = importer(family, root, Options(canvas=Canvas(64, 96)))
    (source,) = reader.sources()
    tracemalloc.start()
    for episode in reader.episodes(source):
        for _ in episode.parts:
            pass
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


@pytest.mark.parametrize("family", MAKERS)
def test_memory_does_not_grow_with_the_length_of_a_recording(tmp_path, family):
    """Negative control: the frames of the longer one are more than what is ever held."""
    for frames in (200, 600):
        MAKERS[family](tmp_path / str(frames), frames)
    short, long = (peak(family, tmp_path / str(frames)) for frames in (200, 600))
    assert long < short + 1_000_000
    assert long < 600 * 64 * 96 * 3 / 1.3
