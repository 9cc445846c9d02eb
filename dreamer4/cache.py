"""What time layers remember of the frames before: a ring of keys and values, constant cost per frame.

The ring of `window - 1` frames is shared by all rows; each row has its own validity, so that streams may start anew
at any time. Keys are stored rotated by an ever-increasing frame counter: attention only sees differences of it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class TimeCache:
    """Keys and values of the last frames, per time layer. Made by `Transformer.init_cache`, changed by commits only.

    `keys[i]`, `values[i]`: `[B, S, Nkv, C - 1, K]`; `valid_BC`: which frames a row may see; `frame_C`: which frame a
    slot of the ring holds; `position`: the number of the next frame.
    """

    keys: list[Tensor]
    values: list[Tensor]
    valid_BC: Tensor
    frame_C: Tensor
    position: int = 0

    @classmethod
    def empty(cls, layers: int, shape: tuple[int, ...], device: torch.device | str, dtype: torch.dtype) -> "TimeCache":
        keys, values = ([torch.zeros(shape, device=device, dtype=dtype) for _ in range(layers)] for _ in range(2))
        slots = shape[-2]
        valid = torch.zeros(shape[0], slots, dtype=torch.bool, device=device)
        return cls(keys, values, valid, torch.full((slots,), -1, device=device))

    @property
    def slots(self) -> int:
        return self.frame_C.shape[0]

    def clone(self) -> "TimeCache":
        return TimeCache(
            [k.clone() for k in self.keys],
            [v.clone() for v in self.values],
            self.valid_BC.clone(),
            self.frame_C.clone(),
            self.position,
        )

    def reset(self, rows_B: Tensor) -> None:
        """Forgets everything of the rows where `rows_B` is true: their next frame starts an episode."""
        self.valid_BC &= ~rows_B.to(self.valid_BC.device)[:, None]

    def extended(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The ring followed by the frames of this pass, `[B, S, Nkv, C - 1 + T, K]`."""
        return torch.cat([self.keys[layer], k], dim=-2), torch.cat([self.values[layer], v], dim=-2)

    def mask(self, own_BTT: Tensor, segment_BT: Tensor | None, length: int, window: int) -> Tensor:
        """`[B, T, C - 1 + T]`: which ring slots and which frames of this pass a frame sees."""
        frame_T = torch.arange(self.position, self.position + length, device=self.frame_C.device)
        past_BTC = self.valid_BC[:, None, :] & (frame_T[:, None] - self.frame_C[None, :] < window)
        if segment_BT is not None:
            past_BTC = past_BTC & (segment_BT == 0)[:, :, None]
        return torch.cat([past_BTC, own_BTT.expand(past_BTC.shape[0], -1, -1)], dim=-1)

    def write(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Puts the last frames of a pass into their places in the ring."""
        kept, slots = self._kept(k.shape[-2])
        self.keys[layer][..., slots, :] = k[..., kept, :].to(self.keys[layer].dtype)
        self.values[layer][..., slots, :] = v[..., kept, :].to(self.values[layer].dtype)

    def advance(self, segment_BT: Tensor | None, length: int) -> None:
        """Called once after all layers wrote `length` frames."""
        kept, slots = self._kept(length)
        if segment_BT is not None:  # what a later frame continues is the last segment of the row
            last_B1 = segment_BT[:, -1:]
            self.valid_BC &= last_B1 == 0
            self.valid_BC[:, slots] = segment_BT[:, kept] == last_B1
        else:
            self.valid_BC[:, slots] = True
        self.frame_C[slots] = torch.arange(self.position, self.position + length, device=self.frame_C.device)[kept]
        self.position += length

    def _kept(self, length: int) -> tuple[slice, Tensor]:
        kept = min(length, self.slots)
        last = self.position + length
        return slice(length - kept, length), torch.arange(last - kept, last, device=self.frame_C.device) % self.slots
