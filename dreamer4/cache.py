"""What time layers remember of the frames before: a ring of keys and values, constant cost per frame.

Every row is a stream of its own with its own frame counter: it may start anew at any time, and is then as good as new.
Keys are stored rotated by that counter; attention only sees differences of it. Memory is allocated once. Its first
place belongs to the frame that is looked at, so that attention reads what it may see in one piece, without a copy.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dreamer4.attention import Turn, banded_mask, rope_angles


@dataclass
class TimeCache:
    """Keys and values of the last frames, per time layer. Made by `Transformer.init_cache`, changed by commits only.

    `memory[i]`: `[2, S, B, Nkv, C, K]` keys and values, the current frame's and then those of the ring of C - 1;
    `valid_BC`: which places of the ring a row may see; `position_B`: the number of every row's next frame.
    `space_turns`, `time_gains`: what the layers' learned gains make of positions, computed once per stream.
    """

    memory: list[Tensor]
    valid_BC: Tensor
    position_B: Tensor
    space_turns: list[Turn]
    time_gains: list[Tensor]
    rope_base: float
    filled: int = 0  # places of the ring that any row may see: the first ones
    broken: int = 0  # commits until all rows see all filled places again
    static: bool = False  # the same shapes in every pass, and nothing that the host has to know
    turns: list[Turn] = field(default_factory=list)  # of the next frame, per time layer
    layers: Callable[..., Any] | None = None  # `dreamer4.decode.through_all`, if it is compiled

    def __post_init__(self) -> None:
        self.turns = self.turns or self.time_turns(1)

    @property
    def slots(self) -> int:
        """Frames in the ring."""
        return self.valid_BC.shape[1]

    @property
    def keys(self) -> list[Tensor]:
        """The ring's, per time layer `[S, B, Nkv, C - 1, K]`."""
        return [memory[0, ..., 1:, :] for memory in self.memory]

    @property
    def values(self) -> list[Tensor]:
        return [memory[1, ..., 1:, :] for memory in self.memory]

    @property
    def frame_BC(self) -> Tensor:
        """Which frame a place of the ring holds; negative for one that never held any."""
        place_C = torch.arange(self.slots, device=self.position_B.device)
        last_B1 = self.position_B[:, None] - 1
        return last_B1 - (last_B1 - place_C) % self.slots

    def clone(self) -> "TimeCache":
        return replace(
            self,
            memory=[memory.clone() for memory in self.memory],
            valid_BC=self.valid_BC.clone(),
            position_B=self.position_B.clone(),
            turns=[turn.clone() for turn in self.turns],
        )

    def reset(self, rows_B: Tensor) -> None:
        """Forgets everything of the rows where `rows_B` is true: their next frame starts an episode, at position 0."""
        if rows_B.device.type == "cpu" and not rows_B.any():
            return
        rows_B = rows_B.to(self.valid_BC.device)
        self.valid_BC &= ~rows_B[:, None]
        self.position_B.masked_fill_(rows_B, 0)
        self.broken = self.slots
        self._refresh()

    def time_turns(self, length: int) -> list[Turn]:
        """How queries and keys of the next `length` frames turn, per time layer: `[B, T, 1, H, K]`."""
        frame_BT = self.position_B[:, None] + torch.arange(length, device=self.position_B.device)
        size = self.memory[0].shape[-1]
        angles = rope_angles(frame_BT.flatten(), size, self.rope_base).unflatten(0, frame_BT.shape)[:, :, None]
        return [Turn.of(angles, gain_HK) for gain_HK in self.time_gains]

    def seen(self) -> slice:
        """The places that a pass of one frame reads: its own, and the filled ones."""
        return slice(0, 1 + (self.slots if self.static else self.filled))

    def mask(self) -> Tensor | None:
        """`[B, 1, 1, places]` for a pass of one frame: which of these places a row sees; None = all."""
        if not self.static and not self.broken:
            return None
        own_B1 = torch.ones_like(self.valid_BC[:, :1])
        return torch.cat([own_B1, self.valid_BC], dim=1)[:, None, None, self.seen()]

    def long_mask(self, segment_BT: Tensor | None, length: int) -> Tensor:
        """`[B, 1, T, filled + T]` for a longer pass: which places of the ring and which of its own frames each sees."""
        filled = self.seen().stop - 1
        own_BTT = banded_mask(segment_BT, length, self.slots + 1, self.valid_BC.device)
        age_BC = self.position_B[:, None] - self.frame_BC[:, :filled]
        step_T = torch.arange(length, device=age_BC.device)
        past_BTC = self.valid_BC[:, None, :filled] & (age_BC[:, None] + step_T[:, None] <= self.slots)
        if segment_BT is not None:
            past_BTC = past_BTC & (segment_BT == 0)[:, :, None]
        return torch.cat([past_BTC, own_BTT.expand(past_BTC.shape[0], -1, -1)], dim=-1)[:, None]

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Puts the last frames of keys and values `[S, B, Nkv, T, K]` into the ring."""
        kept, place_BT = self._kept(keys.shape[-2])
        row_B1 = torch.arange(place_BT.shape[0], device=place_BT.device)[:, None]
        for memory, new in zip(self.memory[layer], (keys, values), strict=True):
            memory[:, row_B1, :, 1 + place_BT] = new[..., kept, :].permute(1, 3, 0, 2, 4).to(memory.dtype)

    def advance(self, segment_BT: Tensor | None, length: int) -> None:
        """Called once after all layers wrote `length` frames."""
        kept, place_BT = self._kept(length)
        if segment_BT is not None:  # what a later frame continues is the last segment of the row
            last_B1 = segment_BT[:, -1:]
            self.valid_BC &= last_B1 == 0
            self.valid_BC.scatter_(1, place_BT, segment_BT[:, kept] == last_B1)
        else:
            self.valid_BC.scatter_(1, place_BT, True)
        self.position_B += length
        self._refresh()
        if self.static:
            return
        self.filled = min(self.slots, self.filled + length)
        cut = segment_BT is not None and (segment_BT.device.type != "cpu" or bool(segment_BT.any()))
        self.broken = self.slots if cut else max(0, self.broken - length)

    def _refresh(self) -> None:
        for old, new in zip(self.turns, self.time_turns(1), strict=True):
            old.copy_(new)

    def _kept(self, length: int) -> tuple[slice, Tensor]:
        kept = slice(max(0, length - self.slots), length)
        frame_T = torch.arange(kept.start, kept.stop, device=self.position_B.device)
        return kept, (self.position_B[:, None] + frame_T) % self.slots


def empty_cache(
    places: int,
    shape: tuple[int, int, int, int],
    space_turns: list[Turn],
    time_gains: list[Tensor],
    rope_base: float,
    like: Tensor,
) -> TimeCache:
    """A past without frames: a ring of `places` for keys of `shape [S, B, Nkv, K]`, in the numbers of `like`."""
    slots, batch, heads, size = shape
    memory = [like.new_zeros((2, slots, batch, heads, places + 1, size)) for _ in time_gains]
    valid = torch.zeros((batch, places), dtype=torch.bool, device=like.device)
    position = torch.zeros(batch, dtype=torch.long, device=like.device)
    return TimeCache(memory, valid, position, space_turns, time_gains, rope_base)
