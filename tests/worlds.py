"""A tiny world on disk, for the tests of learners and actors: real recordings through the real writer and reader.

A bright column walks over four places; actions are left, right and stay. Arriving at the last place is worth 1 and ends
the episode, so rewards, ends and cut recordings are all there. Tiny models that fit it are in `factories`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dreamer4.actions import ActionSpace
from dreamer4.data.clips import ClipSampler
from dreamer4.data.episodes import EpisodeDataset
from dreamer4.data.latents import LatentDataset, finish_latents, write_latents
from dreamer4.data.writer import DatasetWriter
from dreamer4.rng import numpy_generator
from dreamer4.types import Clip, Episode

FRAME = (10, 8, 3)
LATENT = (2, 6)
SPACE = ActionSpace.discrete(3)
GOAL = 3


def picture(place: int, noise: np.random.Generator) -> np.ndarray:
    """`[H, W, C]` uint8."""
    frame = noise.integers(0, 60, FRAME, dtype=np.uint8)
    frame[:, 2 * place : 2 * place + 2] += 180
    return frame


def walk(index: int, longest: int = 9) -> Episode:
    """Episode number `index`: random steps from the first place, cut after `longest` frames."""
    draw = numpy_generator("walk", index)
    place, frames, actions = 0, [picture(0, draw)], []
    while place != GOAL and len(frames) < longest:
        action = int(draw.choice(3, p=(0.2, 0.6, 0.2)))
        place = min(GOAL, max(0, place + (-1, 1, 0)[action]))
        actions.append(action)
        frames.append(picture(place, draw))
    length, reached = len(frames), place == GOAL
    reward = np.zeros(length, np.float32)
    reward[-1] = float(reached)
    return Episode(
        frames_THWC=np.stack(frames),
        act_out_TA=np.array([*actions, 0], np.float32)[:, None],
        act_known_T=np.arange(length) < length - 1,
        reward_T=reward,
        terminal=reached,
        success=reached,
        task=index % 2,
        source="test",
    )


@dataclass(frozen=True)
class World:
    """Recordings and made-up latents of them; `walks` is what was written."""

    walks: list[Episode]
    dataset: EpisodeDataset
    latents: LatentDataset

    def clips(self, name: str = "clips", latents: bool = True, episodes: np.ndarray | None = None) -> ClipSampler:
        return ClipSampler(self.dataset, episodes, self.latents if latents else None, 7, name)


def write_walks(folder: Path, walks: list[Episode]) -> EpisodeDataset:
    """The recordings in several small shards."""
    with DatasetWriter(folder, "walk", FRAME, SPACE, ["even", "odd"], shard_frames=40) as writer:
        for episode in walks:
            writer.add(episode)
    return EpisodeDataset.open(folder)


def make_world(folder: Path, count: int = 24) -> World:
    """`count` episodes; their latents are seeded numbers in (-1, 1), one frame like no other."""
    walks = [walk(index) for index in range(count)]
    dataset = write_walks(folder / "episodes", walks)
    for index, shard in enumerate(dataset.manifest.shards):
        numbers = numpy_generator("latents", index).uniform(-0.9, 0.9, (shard.frames, *LATENT)).astype(np.float32)
        write_latents(folder / "latents", index, numbers, "made up")
    finish_latents(folder / "latents", dataset, "made up")
    return World(walks, dataset, LatentDataset.open(folder / "latents", dataset))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def rows_with(clip: Clip, rows_B: Tensor, name: str, value: Tensor) -> Clip:
    """The clip with one of its tensors replaced in some rows."""
    own = getattr(clip, name)
    chosen = rows_B.reshape(-1, *[1] * (own.dim() - 1))
    return replace(clip, **{name: torch.where(chosen, value, own)})


def gradients(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and gradients of the parameters that have any that isn't 0."""
    for name, parameter in module.named_parameters():
        if parameter.grad is not None and bool(parameter.grad.any()):
            yield name, parameter.grad


def has_gradient(module: nn.Module) -> bool:
    return any(True for _ in gradients(module))
