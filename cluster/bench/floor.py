"""The floor of training: a plain transformer of the same sizes, to compare an update of the world model with.

What anybody would write who knows attention and shortcut forcing, and nothing else of the paper: LayerNorm, one fused
matrix for queries, keys and values, torch's own attention kernel. No rotary positions, no normalised queries and keys,
no capped logits, no grouped queries, no segments, no missing actions, AdamW as it comes.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamer4 import flops
from dreamer4.dynamics import DynamicsConfig
from dreamer4.shortcut import (
    Levels,
    ShortcutConfig,
    bootstrapped_rows,
    corrupt,
    sample_levels,
    shortcut_error,
    shortcut_targets,
)
from dreamer4.types import Clip


class Block(nn.Module):
    """Pre-norm attention, within a frame or back in time, and a gated MLP."""

    def __init__(self, width: int, heads: int, hidden: int, time: bool):
        super().__init__()
        self.heads, self.time = heads, time
        self.norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 2 * hidden, bias=False), nn.Linear(hidden, width, bias=False)

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5).flatten(1, 2)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=self.time)
        return self.out(attended.transpose(1, 2).reshape(x.shape))

    def forward(self, x_BTSM: Tensor) -> Tensor:
        x = self.norm(x_BTSM)
        x = self.attend(x.transpose(1, 2)).transpose(1, 2) if self.time else self.attend(x)
        x_BTSM = x_BTSM + x
        gate, value = self.up(self.mlp_norm(x_BTSM)).chunk(2, dim=-1)
        return x_BTSM + self.down(F.silu(gate) * value)


class TrainingFloor(nn.Module):
    """Blocks on `[action | level | latents | registers]`, for one action of several classes."""

    def __init__(self, config: DynamicsConfig):
        super().__init__()
        self.config, width = config, config.width
        self.action = nn.Embedding(config.space.parts[0].size, width)
        self.level, self.size = nn.Embedding(config.k_max, width), nn.Embedding(config.k_max.bit_length(), width)
        self.latent_in, self.latent_out = nn.Linear(config.channels, width), nn.Linear(width, config.channels)
        self.registers = nn.Parameter(0.02 * torch.randn(config.registers, width))
        times = [(i + 1) % config.time_every == 0 for i in range(config.depth)]
        self.blocks = nn.ModuleList(Block(width, config.heads, config.hidden, time) for time in times)
        self.norm = nn.LayerNorm(width)

    def forward(self, z_BTSD: Tensor, tau_idx_BT: Tensor, step_idx_BT: Tensor, action_BT: Tensor) -> Tensor:
        level = self.level(tau_idx_BT) + self.size(step_idx_BT)
        registers = self.registers.expand(*action_BT.shape, -1, -1)
        tokens = [self.action(action_BT)[:, :, None], level[:, :, None], self.latent_in(z_BTSD), registers]
        x = torch.cat(tokens, dim=2)
        for block in self.blocks:
            x = block(x)
        return self.latent_out(self.norm(x)[:, :, 2 : 2 + self.config.latents])


class FloorLearner:
    """Updates a `TrainingFloor` by shortcut forcing, teacher passes of the bootstrapped rows included."""

    def __init__(self, config: DynamicsConfig, shortcut: ShortcutConfig, device: torch.device):
        self.model, self.shortcut = TrainingFloor(config).to(device), shortcut
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-4)

    def step(self, clip: Clip, noise: torch.Generator) -> float:
        assert clip.latents_BTSD is not None
        clean, action = clip.latents_BTSD, clip.act_in_BTA[..., 0].long()
        drawn = sample_levels(self.shortcut, clip.batch, clip.length, noise)
        levels = Levels(drawn.tau_idx.to(clean.device), drawn.step_idx.to(clean.device), drawn.k_max)
        z = corrupt(clean, torch.randn(clean.shape, generator=noise).to(clean.device), levels.tau)
        asked, target = bootstrapped_rows(self.shortcut, clip.batch), clean
        if asked.stop:
            some = Levels(levels.tau_idx[asked], levels.step_idx[asked], levels.k_max)
            taught = shortcut_targets(lambda *args: self.model(*args, action[asked]), clean[asked], z[asked], some)
            target = torch.cat([taught, clean[asked.stop :]])
        output = self.model(z, levels.tau_idx, levels.step_idx, action)
        loss = shortcut_error(output, target, levels, self.shortcut.ramp).mean()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return float(loss.detach())

    def estimate_flops(self, batch: int, length: int) -> int:
        """As `dreamer4.flops` counts; actions are looked up, which is no product."""

        def one_pass(rows: int) -> flops.Flops:
            c = self.model.config
            plain = replace(c.transformer(), kv_heads=c.heads)
            places = rows * length * c.latents
            ends = flops.linear(places, c.channels, c.width, first=True) + flops.linear(places, c.width, c.channels)
            return flops.transformer(plain, rows, length, c.world_slots) + ends

        asked = len(range(batch)[bootstrapped_rows(self.shortcut, batch)])
        return one_pass(batch).total + 2 * one_pass(asked).forward
