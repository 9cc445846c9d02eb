"""The agent in a real environment: the same features as in training, rows of their own, and actions by noise."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from factories import MIXED_SPACE, random_video, tiny_dynamics, tiny_heads, tiny_tokenizer
from torch import Tensor

from dreamer4.actions import ActionSpace
from dreamer4.heads import PolicyHead
from dreamer4.rng import generator
from dreamer4.shortcut import ShortcutConfig, corrupt
from dreamer4.stream import AgentStream

SHORTCUT = ShortcutConfig(k_max=8, context_noise=0.125)
LENGTH = 11  # more than the reach of tokenizer and dynamics


def policy_of(space: ActionSpace) -> PolicyHead:
    return tiny_heads(tiny_dynamics(actions=space.to_json())).policy


def stream_of(batch: int, space: ActionSpace | None = None, **changes) -> AgentStream:
    space = space or ActionSpace.discrete(3)
    dynamics = tiny_dynamics(actions=space.to_json())
    return AgentStream(tiny_tokenizer(), dynamics, policy_of(space), SHORTCUT, batch, **changes)


def history(rows: Sequence[int], length: int = LENGTH) -> tuple[np.ndarray, np.ndarray]:
    """Frames and the actions that led to them, a function of the row's number."""
    frames = torch.cat([random_video(1, length, seed=row) for row in rows]).numpy()
    actions = [torch.randint(3, (1, length, 1), generator=generator("act", row)).float() for row in rows]
    return frames, torch.cat(actions).numpy()


def noise_at(rows: Sequence[int], t: int) -> list[torch.Generator]:
    return [generator("row", row, t) for row in rows]


def follow(stream: AgentStream, rows: Sequence[int], first_BT: np.ndarray) -> Tensor:
    frames, actions = history(rows, first_BT.shape[1])
    features = [
        stream.features(frames[:, t], actions[:, t], first_BT[:, t], noise_at(rows, t))
        for t in range(first_BT.shape[1])
    ]
    return torch.cat(features, dim=1)


def firsts(*rows: list[int]) -> np.ndarray:
    first = np.zeros((len(rows), LENGTH), bool)
    for row, places in zip(first, rows, strict=True):
        row[places] = True
    return first


@torch.no_grad()
def training_features(stream: AgentStream, rows: Sequence[int], first_BT: np.ndarray) -> Tensor:
    """The pass of training: whole clips, segments instead of resets."""
    frames, actions = history(rows)
    segments = torch.from_numpy(first_BT.cumsum(axis=1)) - 1
    latents = stream.tokenizer.encode(torch.from_numpy(frames), segments)
    noise = torch.stack(
        [
            torch.stack([torch.randn(latents.shape[2:], generator=generator("row", row, t)) for t in range(LENGTH)])
            for row in rows
        ]
    )
    level = torch.full(first_BT.shape, SHORTCUT.context_idx)
    return stream.world.dynamics(
        corrupt(latents, noise, level / SHORTCUT.k_max),
        level,
        torch.full_like(level, SHORTCUT.finest),
        torch.from_numpy(actions),
        torch.from_numpy(~first_BT),
        segments,
        torch.zeros(first_BT.shape, dtype=torch.long),
    ).features_BTM


def test_streamed_features_are_those_of_the_training_pass():
    """Invariants 16 and 54: pixels through both caches, with episodes that begin at different times."""
    rows, first = [0, 1, 2], firsts([0], [0, 4], [0, 3, 10])
    stream = stream_of(3)
    expected = training_features(stream, rows, first)
    assert torch.allclose(follow(stream, rows, first), expected, atol=1e-5)


def test_a_first_frame_that_is_not_announced_is_told_apart():
    """Invariant 54, negative control."""
    first = firsts([0, 4])
    stream = stream_of(1)
    expected = training_features(stream, [0], first)
    assert not torch.allclose(follow(stream, [0], firsts([0])), expected, atol=1e-2)


def test_a_row_does_not_depend_on_its_neighbours():
    together = follow(stream_of(3), [0, 1, 2], firsts([0], [0, 5], [0]))
    alone = follow(stream_of(1), [1], firsts([0, 5]))
    assert torch.allclose(together[1:2], alone, atol=1e-5)


@pytest.mark.parametrize("rubbish", [2.0, 99.0, np.nan])
def test_the_action_before_a_first_frame_is_ignored(rubbish: float):
    frames, actions = history([0], 1)
    first = np.array([True])
    features = [
        stream_of(1).features(frames[:, 0], np.full_like(actions[:, 0], value), first, noise_at([0], 0))
        for value in (0.0, rubbish)
    ]
    assert torch.equal(*features)


@pytest.mark.parametrize("space", [ActionSpace.discrete(3), MIXED_SPACE])
def test_actions_are_a_function_of_history_and_noise_in_any_batch(space: ActionSpace):
    rows, first = [4, 7, 9], np.ones(3, bool)
    frames, _ = history(rows, 1)
    act_in = np.zeros((3, space.columns), np.float32)
    together = stream_of(3, space).act(frames[:, 0], act_in, first, noise_at(rows, 0))
    assert together.shape == (3, space.columns) and together.dtype == np.float32
    space.check(together)
    for i, row in enumerate(rows):
        alone = stream_of(1, space).act(frames[i : i + 1, 0], act_in[:1], first[:1], noise_at([row], 0))
        np.testing.assert_allclose(alone[0], together[i], atol=1e-5)


def test_sampled_actions_follow_the_policy_and_modes_do_not_vary():
    frames, actions = history([0], 1)
    act_in, first = actions[:, 0], np.ones(1, bool)

    def drawn(sample: bool) -> list[float]:
        stream = stream_of(1, sample=sample)
        return [stream.act(frames[:, 0], act_in, first, [generator("many", i)])[0, 0] for i in range(20)]

    sampled, modes = drawn(sample=True), drawn(sample=False)
    assert len(set(sampled)) > 1
    # The context's noise alone may move the mode, but less than sampling does.
    assert len(set(modes)) <= len(set(sampled))
    assert modes == drawn(sample=False) and sampled == drawn(sample=True)


def test_the_task_matters():
    first = firsts([0])
    assert not torch.allclose(
        follow(stream_of(1, task=0), [0], first), follow(stream_of(1, task=1), [0], first), atol=1e-3
    )


def test_a_stream_leaves_models_and_arguments_alone():
    stream, (frames, actions) = stream_of(2), history([0, 1], 1)
    frames.setflags(write=False)
    before = {name: value.clone() for name, value in stream.world.dynamics.state_dict().items()}
    stream.act(frames[:, 0], actions[:, 0], np.ones(2, bool), noise_at([0, 1], 0))
    assert all(torch.equal(value, before[name]) for name, value in stream.world.dynamics.state_dict().items())
