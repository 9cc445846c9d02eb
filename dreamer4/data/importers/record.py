"""A Gymnasium wrapper that keeps what `RecordVideo` doesn't: actions, rewards and ends, and pictures without loss."""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from dreamer4.data.importers.gymnasium import FORMAT
from dreamer4.data.importers.spaces import space_to_json
from dreamer4.errors import DataError

PIECE = 64  # frames of an array


class RecordEpisodes(gymnasium.Wrapper):
    """Writes one `.npz` per episode, frame by frame, and gives it its name when the episode is over.

    Args:
        folder: where the files go, `PREFIX-episode-N.npz`; existing ones are not overwritten.
        frames: write pictures (`render_mode="rgb_array"`); false where `RecordVideo` makes a film with the same prefix,
            which then belongs beside this file.
        success: the key of the last step's `info` that tells success.

    Raises:
        DataError: the environment doesn't render pictures, or its action space can't be written.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        folder: Path | str,
        prefix: str = "rl-video",
        frames: bool = True,
        success: str = "success",
    ):
        super().__init__(env)
        if frames and env.render_mode != "rgb_array":
            raise DataError(f"the environment renders {env.render_mode!r}; make it with render_mode='rgb_array'")
        self.folder, self.prefix, self.success = Path(folder), prefix, success
        self.pictures = frames
        self.space = space_to_json(env.action_space)
        self.number = -1
        self._file: zipfile.ZipFile | None = None

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        self._drop()
        result = self.env.reset(**options)
        self.number += 1
        while self.path.exists():
            self.number += 1
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = zipfile.ZipFile(self._temporary, "w", zipfile.ZIP_DEFLATED)
        self._waiting: list[np.ndarray] = []
        self._pieces = 0
        self._actions: list[Any] = []
        self._rewards: list[float] = []
        self._see()
        return result

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self._file is not None:
            self._actions.append(action)
            self._rewards.append(float(reward))
            self._see()
            if terminated or truncated:
                self._finish(terminated, truncated, bool(info.get(self.success, False)))
        return observation, reward, terminated, truncated, info

    def close(self) -> None:
        self._drop()
        super().close()

    @property
    def path(self) -> Path:
        """Of the episode that is being played."""
        return self.folder / f"{self.prefix}-episode-{self.number}.npz"

    @property
    def _temporary(self) -> Path:
        return self.path.with_suffix(".npz.part")

    def _see(self) -> None:
        if self.pictures:
            self._waiting.append(np.asarray(self.env.render()))
            if len(self._waiting) == PIECE:
                self._write_piece()

    def _write_piece(self) -> None:
        if self._waiting:
            self._write(f"frames_{self._pieces:06d}", np.stack(self._waiting))
            self._waiting, self._pieces = [], self._pieces + 1

    def _finish(self, terminated: bool, truncated: bool, success: bool) -> None:
        assert self._file is not None
        self._write_piece()
        name = self.env.spec.id if self.env.spec else type(self.env.unwrapped).__name__
        header = {"format": FORMAT, "env": name, "action_space": self.space, "success": success}
        self._write("header", np.array(json.dumps(header)))
        for key, values in _flattened(self._actions, self.env.action_space):
            self._write(key, values)
        self._write("rewards", np.array(self._rewards, np.float32))
        self._write("terminated", np.array(terminated))
        self._write("truncated", np.array(truncated))
        self._file.close()
        self._file = None
        os.replace(self._temporary, self.path)

    def _write(self, key: str, values: np.ndarray) -> None:
        assert self._file is not None
        with self._file.open(f"{key}.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array(member, values, allow_pickle=False)

    def _drop(self) -> None:
        """An episode that was not played to its end is not kept."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self._temporary.unlink(missing_ok=True)


def _flattened(actions: list[Any], space: gymnasium.Space, name: str = "actions") -> list[tuple[str, np.ndarray]]:
    """Arrays over time, with names such as `actions.hand.0`."""
    spaces = gymnasium.spaces
    if isinstance(space, spaces.Dict):
        inner = [_flattened([a[key] for a in actions], below, f"{name}.{key}") for key, below in space.items()]
    elif isinstance(space, spaces.Tuple):
        inner = [_flattened([a[i] for a in actions], below, f"{name}.{i}") for i, below in enumerate(space)]
    else:
        return [(name, np.stack([np.asarray(action) for action in actions]))]
    return [pair for pairs in inner for pair in pairs]
