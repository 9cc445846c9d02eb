"""OpenAI's VPT contractor recordings of Minecraft: a film and one line per tick (arXiv 2206.11795).

A source is one recording of up to five minutes, `NAME.mp4` with `NAME.jsonl`, and is never joined with another one
(rule R16 of docs/importing.md). No tick is left out because nothing was pressed (R13).
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path

import numpy as np

from dreamer4.data.importers.canvas import Canvas
from dreamer4.data.importers.cursor import draw_cursor
from dreamer4.data.importers.film import frames_of
from dreamer4.data.importers.importer import Importer, Options, refuse_rate, without
from dreamer4.data.importers.steps import Recorded, Step, episodes_of
from dreamer4.data.importers.vpt_actions import Rules, action_row, release_stuck_attack
from dreamer4.data.importers.vpt_lines import Tick, read_ticks
from dreamer4.data.importers.vpt_tasks import TASKS, died, task_events
from dreamer4.data.schema import Recording
from dreamer4.errors import DataError

FRAME = Canvas(360, 640)  # paper, section 4
PAUSE = 1000.0  # milliseconds between ticks beyond which the recorder was paused (R14)
MOST_UNPAIRED = 20  # frames without a line, or lines without a frame, that are cut off at the end (R2)
VERSION = re.compile(r"\d+\.\d+")


class VptImporter(Importer):
    """Recordings in a folder, or those that an index file (`{"basedir", "relpaths"}`) names.

    The version of the recorder is taken from the path, as in `data/6.9/NAME.mp4`, unless the options give it.
    """

    def __init__(self, root: Path, options: Options):
        super().__init__(root, options)
        refuse_rate(options, "VPT")
        self.canvas = options.canvas or FRAME

    @property
    def recording(self) -> Recording:
        return Recording(self.options.name or "minecraft", self.canvas.shape, self.options.rules.space(), TASKS)

    def sources(self) -> list[str]:
        """Films and lines without their other half are sources too: importing them tells what is missing.

        What an index names and is not there at all is left out: most users have a part of the data.
        """
        if self.root.is_dir():
            files = [path for path in self.root.rglob("*") if path.suffix in (".mp4", ".jsonl")]
            names = {str(path.relative_to(self.root).with_suffix("")) for path in files}
        else:
            names = set(self._indexed)
        names = without(list(names), self.options.exclude)
        if not names:
            raise DataError(f"'{self.root}' holds or names no recording: NAME.mp4 with NAME.jsonl is looked for")
        return names

    def files(self, source: str) -> list[Path]:
        return list(self._pair(source))

    def episodes(self, source: str) -> Iterator[Recorded]:
        film, lines = self._pair(source)
        rules = self.options.rules
        if not rules.version:
            rules = replace(rules, version=next((p for p in reversed(film.parts) if VERSION.fullmatch(p)), ""))
        ticks = release_stuck_attack(read_ticks(lines))
        pairs = _in_step(frames_of(film), ticks, film, lines)
        steps = _steps(pairs, self.canvas, rules, film)
        return episodes_of(steps, source, self.recording.actions.columns)

    @cached_property
    def _indexed(self) -> dict[str, Path]:
        """The films of an index that are on this disk, or whose lines are."""
        basedir, paths = read_index(self.root)
        found = {path.removesuffix(".mp4"): _located(self.root, basedir, path) for path in paths}
        return {name: path for name, path in found.items() if path is not None}

    def _pair(self, source: str) -> tuple[Path, Path]:
        """Film and lines; raises `DataError` if one of them is missing."""
        film = self.root / f"{source}.mp4" if self.root.is_dir() else self._indexed.get(source)
        if film is None:
            raise DataError(f"'{self.root}' names no recording '{source}' that is on this disk: download it again")
        for path, other in ((film, film.with_suffix(".jsonl")), (film.with_suffix(".jsonl"), film)):
            if not path.is_file():
                raise DataError(f"'{path}' is missing beside '{other.name}': download it, or exclude '{source}'")
        return film, film.with_suffix(".jsonl")


def _steps(pairs: Iterable[tuple[np.ndarray, Tick]], canvas: Canvas, rules: Rules, film: Path) -> Iterator[Step]:
    """Frame t with line t and what line t + 1 shows of it; a new episode where the recorder was paused."""
    counters, episode, success, dead = None, 0, False, False
    cursor: tuple[float, float] | None = None
    for (frame, tick), following in _with_next(pairs):
        events = task_events(counters, tick.stats)
        dead |= died(counters, tick.stats)
        counters = {**(counters or {}), **tick.stats}
        success |= bool(events.any())
        cursor = (tick.mouse.x, tick.mouse.y) if tick.mouse else cursor
        if tick.gui and cursor:
            frame = draw_cursor(frame, *cursor)
        goes_on = following is not None and follows(tick, following)
        # At an episode's last frame the row is made from this line alone, and the writer's contract drops it.
        row = action_row(tick, following if goes_on else None, rules)
        yield Step(canvas.place(frame, film), row, 0.0, events, dead and not goes_on, success=success, episode=episode)
        if not goes_on:
            # Counters may have changed during a pause: the next episode's first line starts them anew.
            counters, success, dead, episode = None, False, False, episode + 1


def follows(tick: Tick, following: Tick) -> bool:
    """Whether two lines are neighbours in the game (R14)."""
    return following.tick == tick.tick + 1 and 0 <= following.milli - tick.milli <= PAUSE


def _with_next(
    pairs: Iterable[tuple[np.ndarray, Tick]],
) -> Iterator[tuple[tuple[np.ndarray, Tick], Tick | None]]:
    for now, following in pairwise(chain(pairs, [None])):
        assert now is not None
        yield now, following[1] if following is not None else None


def _in_step(
    frames: Iterator[np.ndarray], ticks: Iterator[Tick], film: Path, lines: Path
) -> Iterator[tuple[np.ndarray, Tick]]:
    """Frame number t with line number t, as long as there are both; what is over at the end is cut off (R2).

    Raises:
        DataError: there is no line, or more than `MOST_UNPAIRED` are over.
    """
    paired = 0
    for frame, tick in zip(frames, ticks, strict=False):
        yield frame, tick
        paired += 1
    # zip has taken one frame more than pairs where the lines ended first.
    frames_over, ticks_over = sum(1 for _ in frames), sum(1 for _ in ticks)
    if paired == 0:
        raise DataError(f"'{lines}' has no line for the frames of '{film.name}': download it again")
    if max(frames_over, ticks_over) > MOST_UNPAIRED:
        raise DataError(
            f"'{film}' has {paired + frames_over} frames or one more and '{lines.name}' {paired + ticks_over} lines: "
            f"more than {MOST_UNPAIRED} are without the other half, so one of them was cut; download both again"
        )


def read_index(path: Path) -> tuple[str, list[str]]:
    """`basedir` and the relative paths of an index file; raises `DataError` if it is none."""
    try:
        record = json.loads(path.read_bytes())
        basedir, paths = record["basedir"], record["relpaths"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"'{path}' is no index of VPT recordings ({{'basedir', 'relpaths'}}): {error}") from error
    if not isinstance(paths, list) or not all(isinstance(name, str) and name.endswith(".mp4") for name in paths):
        raise DataError(f"'{path}' names something else than .mp4 files in 'relpaths'")
    return str(basedir), paths


def _located(index: Path, basedir: str, path: str) -> Path | None:
    """Where a recording of an index lies on this disk: below `basedir`, else beside the index, with or without folders.

    A path that leaves those folders is not followed.
    """
    if path.startswith("/") or ".." in Path(path).parts:
        return None
    roots = [] if "://" in basedir else [index.parent / basedir]
    for candidate in (*(root / path for root in roots), index.parent / path, index.parent / Path(path).name):
        if candidate.is_file() or candidate.with_suffix(".jsonl").is_file():
            return candidate
    return None
