"""Rules R1, R2 and R12 to R16 of docs/importing.md, on films and lines that are made here."""

import json
from fractions import Fraction

import numpy as np
import pytest
from recordings import (
    Slider,
    imported,
    line,
    mouse,
    moved,
    stamped,
    stamps,
    write_film,
    write_index,
    write_lines,
    write_vpt,
)

from dreamer4.data.importers.canvas import Canvas
from dreamer4.data.importers.cursor import draw_cursor
from dreamer4.data.importers.film import frames_of
from dreamer4.data.importers.importer import Options
from dreamer4.data.importers.vpt import VptImporter
from dreamer4.data.importers.vpt_actions import KEYS, Rules
from dreamer4.data.importers.vpt_tasks import DEATHS, TASKS
from dreamer4.errors import DataError

NAME = "player-abc-20220421-092639"
FORWARD, INVENTORY = KEYS.index("forward"), KEYS.index("inventory")
SMALL = Options(canvas=Canvas(64, 96))


def one(folder, options: Options = SMALL):
    """The only episode of the only recording."""
    importer = VptImporter(folder, options)
    (source,) = importer.sources()
    (episode,) = imported(importer, source)
    return episode


def test_an_action_shows_its_effect_in_the_next_frame(tmp_path):
    """R1: `act_out[t]` is chosen at frame t. Negative control: the same actions moved by one frame, either way."""
    presses = np.random.default_rng(3).random(60) < 0.5
    game = Slider()
    write_vpt(tmp_path, game.play(list(presses)), frames=game.frames)
    episode = one(tmp_path)
    seen, forward = moved(episode.frames_THWC), episode.act_out_TA[:-1, FORWARD] > 0
    assert (seen == forward).all()
    assert (seen[1:] != forward[:-1]).mean() > 0.3
    assert (seen[:-1] != forward[1:]).mean() > 0.3


def test_the_last_frame_that_is_written_twice_is_cut_and_none_is_stretched_or_dropped(tmp_path):
    """R2, R13: every tick is there once, pressed or not. Negative control: the film itself has one frame more."""
    write_vpt(tmp_path, [line(t) for t in range(70)])
    episode = one(tmp_path)
    assert stamps(episode.frames_THWC) == list(range(70))
    assert episode.act_known_T.tolist() == [True] * 69 + [False]
    assert (episode.act_out_TA[:, :23] == 0).all()
    assert len(list(frames_of(tmp_path / f"{NAME}.mp4"))) == 71


def test_a_recording_without_the_extra_frame_is_cut_to_the_shorter_half(tmp_path):
    write_vpt(tmp_path, [line(t) for t in range(12)], extra=0)
    write_lines(tmp_path / f"{NAME}.jsonl", [line(t) for t in range(15)])
    assert stamps(one(tmp_path).frames_THWC) == list(range(12))


@pytest.mark.parametrize("version", ["6.9", "7.0", "8.0", "9.0", "10.0"])
def test_the_recorders_version_is_read_from_the_path(tmp_path, version):
    """R5 by the folder that index files have. Negative control: the version that the user gives is stronger."""
    inside = [line(t, isGuiOpen=True, mouse=mouse(dx=10.0)) for t in range(4)]
    write_vpt(tmp_path / "data" / version, inside)
    rules = Rules(camera="mouse", foveation=None)
    scale = 2.0 if version == "6.9" else 1.0
    assert one(tmp_path, Options(Canvas(64, 96), rules=rules)).act_out_TA[0, -1] == pytest.approx(1.5 * scale)
    given = Rules(camera="mouse", foveation=None, version="5.8")
    assert one(tmp_path, Options(Canvas(64, 96), rules=given)).act_out_TA[0, -1] == pytest.approx(0.75)


def test_the_cursor_is_drawn_on_frames_of_guis_at_its_place(tmp_path):
    """R12. Negative control: frames without a GUI are as they were."""
    grey = [np.full((90, 160, 3), 100, np.uint8)] * 6
    at = mouse(x=640.0, y=240.0)
    lines = [line(t, isGuiOpen=t >= 3, mouse=at) for t in range(6)]
    write_vpt(tmp_path, lines, frames=grey)
    frames = one(tmp_path, Options(canvas=Canvas(90, 160))).frames_THWC.astype(int)
    assert np.abs(frames[:3] - 100).max() < 6
    changed = np.abs(frames[3] - 100).max(axis=-1) > 40
    rows, columns = np.nonzero(changed)
    assert (rows.min(), columns.min()) == (30, 80), "the tip is at (x, y) / 8 of a window of 720 lines"
    assert rows.max() < 46
    assert columns.max() < 96


def test_the_cursor_is_cut_off_at_the_borders():
    grey = np.full((40, 40, 3), 100, np.uint8)
    for x, y in ((-50.0, 10.0), (700.0, 715.0), (0.0, 0.0), (1e8, -1e8)):
        assert draw_cursor(grey, x, y).shape == grey.shape
    assert (grey == 100).all(), "the frame that was given is not drawn on"


def test_a_pause_or_a_jump_of_ticks_begins_a_new_episode(tmp_path):
    """R14. Negative control: a slow tick below a second doesn't."""
    lines = [line(t) for t in range(10)] + [line(t, milli=9e12 + 50 * t) for t in range(10, 20)]
    lines += [line(t, milli=9e12 + 900 + 50 * t) for t in range(20, 26)] + [line(t, milli=9e12) for t in range(40, 45)]
    write_vpt(tmp_path, lines)
    importer = VptImporter(tmp_path, SMALL)
    episodes = imported(importer, NAME)
    assert [episode.length for episode in episodes] == [10, 16, 5]
    assert [number for episode in episodes for number in stamps(episode.frames_THWC)] == list(range(31))
    assert all(not episode.act_known_T[-1] and episode.act_known_T[:-1].all() for episode in episodes)


def test_recordings_with_the_debug_overlay_can_be_excluded(tmp_path):
    """R15: by name, with or without folder and suffix."""
    for name in ("a-1", "b-2", "c-3", "d-4"):
        write_vpt(tmp_path / "data" / "6.13", [line(t) for t in range(3)], name=name)
    excluded = frozenset({"b-2", "data/6.13/c-3", "nobody"})
    importer = VptImporter(tmp_path, Options(exclude=excluded))
    assert importer.sources() == ["data/6.13/a-1", "data/6.13/d-4"]
    assert len(VptImporter(tmp_path, Options()).sources()) == 4


def test_death_ends_a_recording_and_the_next_segment_is_another_episode(tmp_path):
    """R16. Negative control: without a death the end is a cut, not an end of the game."""
    fatal = [line(t, stats={DEATHS: int(t == 7)}) for t in range(8)]
    write_vpt(tmp_path, fatal, name="one-1")
    write_vpt(tmp_path, [line(t, stats={DEATHS: 1}) for t in range(8, 14)], name="one-2")
    importer = VptImporter(tmp_path, SMALL)
    (first,), (second,) = (imported(importer, source) for source in importer.sources())
    assert (first.terminal, first.length) == (True, 8)
    assert (second.terminal, second.length) == (False, 6)
    assert first.source != second.source


def test_events_of_the_twenty_tasks_are_increments_on_arrival(tmp_path):
    """Paper, table 4. Negative controls: what was counted before the first line, or in a line left out, is no event."""
    log, craft = "minecraft.mine_block:minecraft.birch_log", "minecraft.craft_item:minecraft.birch_planks"
    counts = [{log: 5}, {log: 5}, {log: 6}, {}, {log: 6, craft: 4}, {log: 8, craft: 4}]
    write_vpt(tmp_path, [line(t, stats=stats) for t, stats in enumerate(counts)])
    episode = one(tmp_path)
    assert len(TASKS) == 20
    assert np.flatnonzero(episode.events_TK[:, TASKS.index("mine_log")]).tolist() == [2, 5]
    assert np.flatnonzero(episode.events_TK[:, TASKS.index("craft_planks")]).tolist() == [4]
    assert episode.events_TK.sum() == 3
    assert episode.success
    assert not one(write_vpt(tmp_path / "idle", [line(t, stats={log: 5}) for t in range(4)]).parent).success


def test_an_index_names_recordings_and_those_not_downloaded_are_left_out(tmp_path):
    """What is there in half is a source: importing it tells what is missing."""
    write_vpt(tmp_path / "data" / "6.13", [line(t) for t in range(3)], name="here")
    write_vpt(tmp_path, [line(t) for t in range(3)], name="flat")
    write_lines(tmp_path / "data" / "6.13" / "half.jsonl", [line(0)])
    names = [f"data/6.13/{name}" for name in ("here", "gone", "flat", "half")] + ["../outside"]
    importer = VptImporter(write_index(tmp_path / "all_6xx.json", names), SMALL)
    assert importer.sources() == ["data/6.13/flat", "data/6.13/half", "data/6.13/here"]
    assert [episode.length for episode in imported(importer, "data/6.13/flat")] == [3]
    with pytest.raises(DataError, match=r"half\.mp4' is missing beside 'half\.jsonl'"):
        imported(importer, "data/6.13/half")
    local = write_index(tmp_path / "local.json", ["6.13/here"], basedir="data")
    assert VptImporter(local, SMALL).sources() == ["6.13/here"]


def test_films_without_lines_name_what_is_missing(tmp_path):
    write_film(tmp_path / "alone.mp4", [stamped(0)] * 3)
    with pytest.raises(DataError, match=r"alone\.jsonl' is missing beside 'alone\.mp4'"):
        imported(VptImporter(tmp_path, SMALL), "alone")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ('{"mouse": ', "row 3 is not JSON"),
        ("[" * 100_000, "row 3 is not JSON"),
        (json.dumps({"tick": 3}), "row 3 lacks 'mouse'"),
        (json.dumps(line(2, yaw=float("nan"))), "row 3 has a field of another kind"),
        (json.dumps(line(2, mouse=mouse(dx=1e300))), "no number within"),
        (json.dumps(line(2, hotbar=12)), "not 0 to 8"),
        (json.dumps(line(2, isGuiOpen="yes")), "not true or false"),
        (json.dumps(line(2, mouse=mouse(buttons=["a"]))), "buttons are"),
        (json.dumps(line(2, stats={"a": "b"})), "no number"),
        (json.dumps([1, 2]), "row 3 has a field of another kind"),
        ("x" * (5 << 20), "has more than"),
    ],
)
def test_a_broken_line_is_named_by_file_and_row(tmp_path, broken, message):
    write_vpt(tmp_path, [line(t) for t in range(5)])
    path = tmp_path / f"{NAME}.jsonl"
    rows = path.read_text().splitlines()
    rows[2] = broken
    path.write_text("\n".join(rows))
    with pytest.raises(DataError, match=message) as caught:
        one(tmp_path)
    assert f"{NAME}.jsonl' row 3" in str(caught.value)


def test_halves_of_very_different_length_are_refused(tmp_path):
    """Negative control: a second's difference is cut off, as above."""
    write_vpt(tmp_path, [line(t) for t in range(60)])
    write_lines(tmp_path / f"{NAME}.jsonl", [line(t) for t in range(20)])
    with pytest.raises(DataError, match="more than 20 are without the other half"):
        one(tmp_path)
    write_lines(tmp_path / f"{NAME}.jsonl", [])
    with pytest.raises(DataError, match="no line"):
        one(tmp_path)


def test_another_frame_rate_is_refused_and_an_empty_folder_too(tmp_path):
    with pytest.raises(DataError, match="--fps is for films without actions"):
        VptImporter(tmp_path, Options(fps=Fraction(10)))
    with pytest.raises(DataError, match="holds or names no recording"):
        VptImporter(tmp_path, Options()).sources()
    (tmp_path / "broken.json").write_text("[]")
    with pytest.raises(DataError, match="is no index"):
        VptImporter(tmp_path / "broken.json", Options()).sources()
