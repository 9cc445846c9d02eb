"""The probe tells by how many rows actions are shifted, and says so where it can't tell."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from worlds import FRAME, SPACE, walk

from dreamer4.actions import ActionSpace, Part
from dreamer4.data.episodes import EpisodeDataset
from dreamer4.data.timing import Timing, probe_timing
from dreamer4.data.validate import validate
from dreamer4.data.writer import DatasetWriter
from dreamer4.types import Episode


def shifted(episode: Episode, rows: int) -> Episode:
    """Every action so many rows too late; those that fall off are lost."""
    acts, known = np.zeros_like(episode.act_out_TA), np.zeros_like(episode.act_known_T)
    for t in range(episode.length - 1):
        if 0 <= t - rows < episode.length - 1:
            acts[t], known[t] = episode.act_out_TA[t - rows], True
    return replace(episode, act_out_TA=acts, act_known_T=known)


def write(folder: Path, episodes: Sequence[Episode], frame=FRAME, space: ActionSpace = SPACE) -> EpisodeDataset:
    with DatasetWriter(folder, "walk", frame, space, ["even", "odd"]) as writer:
        for episode in episodes:
            writer.add(episode)
    return EpisodeDataset.open(folder)


@pytest.fixture(scope="module")
def walks() -> list[Episode]:
    return [walk(number, 40) for number in range(200)]


def probe(folder: Path, episodes: Sequence[Episode]) -> Timing:
    return probe_timing(write(folder, episodes))


@pytest.mark.parametrize("rows", [-2, -1, 0, 1, 2])
def test_shift_is_told(tmp_path, walks, rows):
    found = probe(tmp_path, [shifted(one, rows) for one in walks])
    assert found.shift == rows
    assert ("too late" in found.text, "too early" in found.text) == (rows > 0, rows < 0)


def test_validation_reports_a_shift_as_a_fault(tmp_path, walks):
    write(tmp_path, [shifted(one, 1) for one in walks])
    (fault,) = validate(tmp_path).faults
    assert fault.kind == "timing" and "1 row too late" in fault.text
    assert validate(tmp_path, allow=["timing"]).faults == []


def test_actions_that_have_nothing_to_do_with_the_video_tell_nothing(tmp_path, walks):
    random = np.random.default_rng(0)

    def drawn(episode: Episode) -> Episode:
        acts = random.integers(0, 3, episode.act_out_TA.shape).astype(np.float32)
        return replace(episode, act_out_TA=acts * episode.act_known_T[:, None])

    found = probe(tmp_path, [drawn(one) for one in walks])
    assert found.shift is None and "can't tell" in found.text and "depend" in found.text


def test_actions_in_another_order_tell_nothing(tmp_path, walks):
    """They are still as frequent in every episode as before."""
    random = np.random.default_rng(1)

    def mixed(episode: Episode) -> Episode:
        return replace(
            episode, act_out_TA=np.concatenate([random.permutation(episode.act_out_TA[:-1]), episode.act_out_TA[-1:]])
        )

    assert probe(tmp_path, [mixed(one) for one in walks]).shift is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda one: replace(one, act_known_T=one.act_known_T & False), "knows its actions"),
        (lambda one: replace(one, act_out_TA=one.act_out_TA * 0), "never changes"),
        (lambda one: replace(one, frames_THWC=one.frames_THWC * 0), "video never changes"),
        (lambda one: one, "frames have known actions"),
    ],
)
def test_reason_is_given_where_nothing_can_be_told(tmp_path, walks, change, reason):
    found = probe(tmp_path, [change(one) for one in walks[: 8 if "frames" in reason else 200]])
    assert found.shift is None and reason in found.text


@pytest.mark.parametrize("rows", [0, 1])
def test_held_keys_and_continuous_cameras_are_told_as_well(tmp_path, rows):
    """A picture that slides as a joystick says, which is moved slowly."""
    random, space, episodes = np.random.default_rng(2), ActionSpace((Part("stick", "continuous", 2),)), []
    scenery = np.kron(random.integers(0, 256, (12, 12, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
    for _ in range(60):
        stick, place, frames, acts = np.zeros(2), np.zeros(2), [], []
        for _ in range(40):
            frames.append(np.roll(scenery, tuple(place.astype(int)), (0, 1))[:32, :32])
            stick = 0.8 * stick + random.normal(0, 0.6, 2)
            acts.append(stick)
            place = place + 3 * stick
        known = np.arange(40) < 39
        made = Episode(
            np.stack(frames),
            np.array(acts, np.float32) * known[:, None],
            known,
            np.zeros(40, np.float32),
            terminal=False,
        )
        episodes.append(shifted(made, rows))
    assert probe_timing(write(tmp_path, episodes, (32, 32, 3), space)).shift == rows
