"""The floor of imagination: a plain transformer of the same shapes with a cache, to compare a stream with.

What anybody would write who knows attention and nothing of the paper: LayerNorm, one fused matrix for queries, keys and
values, torch's own attention kernel, a key-value cache that is allocated once. No rotary positions, no normalised
queries and keys, no capped logits, no grouped queries, no agent token. It takes the same passes: K denoising passes
that leave the cache alone, and one that commits.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamer4.dynamics import DynamicsConfig


class Block(nn.Module):
    """Pre-norm attention and a gated MLP."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.heads = heads
        self.norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 2 * hidden, bias=False), nn.Linear(hidden, width, bias=False)

    def mlp(self, x: Tensor) -> Tensor:
        gate, value = self.up(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * value)

    def space(self, x_BSM: Tensor) -> Tensor:
        """Slots of a frame see each other."""
        parts = self.qkv(self.norm(x_BSM)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        return self.mlp(x_BSM + self.out(attended.transpose(1, 2).flatten(2)))

    def time(self, x_BSM: Tensor, cache: Tensor, frame: int) -> Tensor:
        """A slot sees itself in the frames up to this one; `cache [2, B x S, N, frames, K]` keeps keys and values."""
        batch, slots, width = x_BSM.shape
        parts = self.qkv(self.norm(x_BSM)).view(batch * slots, 3, self.heads, -1)
        place = frame % cache.shape[3]
        cache[:, :, :, place] = parts[:, 1:].transpose(0, 1)
        seen = cache[:, :, :, : min(frame + 1, cache.shape[3])]
        attended = F.scaled_dot_product_attention(parts[:, 0].unsqueeze(2), seen[0], seen[1])
        return self.mlp(x_BSM + self.out(attended.reshape(batch, slots, width)))


class Floor(nn.Module):
    """A stack of blocks on `[action | level | latents | registers]`, with a cache for `batch` streams.

    The action is one choice of several.

    A pass writes the frame's own keys into the place that the next commit takes, which nobody else reads.
    """

    def __init__(self, config: DynamicsConfig, batch: int):
        super().__init__()
        width, slots = config.width, config.latents + config.registers + 2
        self.time_every, self.k_max, self.latents, self.frame = config.time_every, config.k_max, config.latents, 0
        self.action = nn.Embedding(config.space.parts[0].size, width)
        self.level = nn.Embedding(config.k_max, width)
        self.latent_in, self.latent_out = nn.Linear(config.channels, width), nn.Linear(width, config.channels)
        self.registers = nn.Parameter(0.02 * torch.randn(config.registers, width))
        self.blocks = nn.ModuleList(Block(width, config.heads, config.hidden) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)
        head = width // config.heads
        shape = (config.depth // config.time_every, 2, batch * slots, config.heads, config.window, head)
        self.cache: Tensor
        self.register_buffer("cache", torch.zeros(shape), persistent=False)

    def forward(self, z_BSD: Tensor, action_B: Tensor, level: int) -> Tensor:
        """One pass over the next frame; latents `[B, S, D]` in and out."""
        batch = z_BSD.shape[0]
        levels = self.level.weight[level].expand(batch, 1, -1)
        tokens = [self.action(action_B)[:, None], levels, self.latent_in(z_BSD), self.registers.expand(batch, -1, -1)]
        x = torch.cat(tokens, dim=1)
        for i, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            if (i + 1) % self.time_every == 0:
                x = block.time(x, self.cache[i // self.time_every], self.frame)
            else:
                x = block.space(x)
        return self.latent_out(self.norm(x)[:, 2 : 2 + self.latents])

    def observe(self, latents_BTSD: Tensor, action_BT: Tensor) -> None:
        """Commits frames of data, one after the other."""
        for z_BSD, action_B in zip(latents_BTSD.unbind(1), action_BT.unbind(1), strict=True):
            self(z_BSD, action_B, self.k_max - 1)
            self.frame += 1

    def generate(self, noise_BSD: Tensor, action_B: Tensor, steps: int) -> Tensor:
        """The next frame after an action: `steps` denoising passes, then the pass that is remembered."""
        z = noise_BSD
        for i in range(steps):
            clean = self(z, action_B, i * self.k_max // steps)
            z = clean if i == steps - 1 else z + (clean - z) / (steps - i)
        self(z, action_B, self.k_max - 1)
        self.frame += 1
        return z
