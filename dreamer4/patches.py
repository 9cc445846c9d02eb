"""Frames as patches and back, latents as packed neighbours and back, and which pixels move."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def padding(size: int, padded: int) -> tuple[int, int]:
    """Pixels before and after, half on each side (360 -> 384: 12 and 12)."""
    extra = padded - size
    return extra // 2, extra - extra // 2


def patchify(video_BTHWC: Tensor, patch: int, padded: tuple[int, int]) -> Tensor:
    """`[B, T, P, Q]` patches of frames that are zero-padded to `padded` rows and columns."""
    rows, columns = (padding(*sizes) for sizes in zip(video_BTHWC.shape[2:4], padded, strict=True))
    video = F.pad(video_BTHWC, (0, 0, *columns, *rows))
    return rearrange(video, "b t (h p) (w q) c -> b t (h w) (p q c)", p=patch, q=patch)


def unpatchify(patches_BTPQ: Tensor, frame: tuple[int, int, int], patch: int, padded: tuple[int, int]) -> Tensor:
    """The inverse of `patchify`, padding cut off."""
    height, width, channels = frame
    top, left = padding(height, padded[0])[0], padding(width, padded[1])[0]
    rows = padded[0] // patch
    video = rearrange(patches_BTPQ, "b t (h w) (p q c) -> b t (h p) (w q) c", h=rows, p=patch, q=patch, c=channels)
    return video[:, :, top : top + height, left : left + width]


def pack(latents_BTSD: Tensor, neighbours: int) -> Tensor:
    """Neighbouring latents side by side in the channels: `[B, T, S, D]` -> `[B, T, S / n, n D]`."""
    return rearrange(latents_BTSD, "b t (s n) d -> b t s (n d)", n=neighbours)


def unpack(latents_BTSD: Tensor, neighbours: int) -> Tensor:
    return rearrange(latents_BTSD, "b t s (n d) -> b t (s n) d", n=neighbours)


def moved(video_BTHWC: Tensor, segment_BT: Tensor | None = None) -> Tensor:
    """bool `[B, T, H, W, 1]`: pixels that differ from the frame before or after, where that is of the same episode."""
    differs = (video_BTHWC[:, 1:] != video_BTHWC[:, :-1]).any(dim=-1, keepdim=True)
    if segment_BT is not None:
        differs = differs & (segment_BT[:, 1:] == segment_BT[:, :-1])[..., None, None, None]
    nothing = torch.zeros_like(video_BTHWC[:, :1, ..., :1], dtype=torch.bool)
    return torch.cat([nothing, differs], dim=1) | torch.cat([differs, nothing], dim=1)
