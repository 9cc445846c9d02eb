"""Films without actions: every frame is kept, no action is known, the world model learns from them all the same."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from dreamer4.actions import ActionSpace
from dreamer4.data.importers.canvas import Canvas
from dreamer4.data.importers.film import FILMS, at_rate, frame_rate, frames_of
from dreamer4.data.importers.importer import Importer, without
from dreamer4.data.importers.steps import Recorded, Step, episodes_of
from dreamer4.data.schema import Recording
from dreamer4.errors import DataError


class VideoImporter(Importer):
    """A film, or all films in a folder and below; each is one episode.

    The dataset needs an action space although none of it is known. Give that of the labelled recordings that the films
    will be mixed with (`like`); else it is a single meaningless choice.
    """

    @cached_property
    def canvas(self) -> Canvas:
        if self.options.canvas is not None:
            return self.options.canvas
        first = self.root / self.sources()[0] if self.root.is_dir() else self.root
        height, width, _ = next(frames_of(first)).shape
        return Canvas(height, width, "exact")

    @property
    def recording(self) -> Recording:
        like = self.options.like
        if like is not None:
            return Recording(self.options.name or like.env, self.canvas.shape, like.actions, like.tasks)
        name = self.options.name or self.root.stem
        return Recording(name, self.canvas.shape, ActionSpace.discrete(2, "unknown"), ("none",))

    def sources(self) -> list[str]:
        if self.root.is_dir():
            found = [path for path in self.root.rglob("*") if path.suffix.lower() in FILMS]
            names = without([str(path.relative_to(self.root)) for path in found], self.options.exclude)
        else:
            names = [self.root.name]
        if not names:
            raise DataError(f"'{self.root}' holds no film ({', '.join(FILMS)})")
        return names

    def files(self, source: str) -> list[Path]:
        return [self.root / source if self.root.is_dir() else self.root]

    def episodes(self, source: str) -> Iterator[Recorded]:
        (path,) = self.files(source)
        frames = frames_of(path)
        if self.options.fps is not None:
            frames = at_rate(frames, frame_rate(path), self.options.fps)
        columns = self.recording.actions.columns
        return episodes_of((Step(self.canvas.place(frame, path)) for frame in frames), source, columns)
