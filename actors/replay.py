"""The real environment brought back to a recorded moment, to see what other actions would have led to."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.collector import recording_seed
from dreamer4.data.episodes import EpisodeDataset
from dreamer4.envs.registry import make
from dreamer4.errors import DataError


@dataclass(frozen=True)
class Outcome:
    """What H actions led to, from N moments.

    uint8 `frames_NHHWC [N, H, height, width, C]`, `reward_NH`, and bool `known_NH`: false after the end of the episode,
    where the last frame is repeated; bool `terminal_NH` marks the end itself. Time limits don't end anything here, as
    they don't in imagination; past the limit the clock stands still, for minigrid's rewards would fall below 0.
    """

    frames_NHHWC: np.ndarray
    reward_NH: np.ndarray
    known_NH: np.ndarray
    terminal_NH: np.ndarray


class Replay:
    """Recordings of `actors.collector`, played again up to any frame: an episode is a function of seed and number.

    Args:
        dataset: as recorded, all its shards in order.
        seed: of the run.
    """

    def __init__(self, dataset: EpisodeDataset, env_name: str, seed: int):
        self.dataset, self.env_name, self.seed = dataset, env_name, seed
        self.env: Any = make(env_name)

    def outcome(self, moment_N: np.ndarray, action_NHA: np.ndarray) -> Outcome:
        """Plays actions from recorded frames, given by their positions in the dataset.

        Raises:
            DataError: the environment doesn't repeat the recording: it is another's, or not all is decided by actions.
        """
        played = [self._play(int(frame), actions) for frame, actions in zip(moment_N, action_NHA, strict=True)]
        return Outcome(*(np.stack(column) for column in zip(*played, strict=True)))

    def _play(self, moment: int, action_HA: np.ndarray) -> tuple[np.ndarray, ...]:
        frame = self._bring_to(moment)
        frames, rewards, known, terminals, over = [], [], [], [], False
        for action in action_HA:
            known.append(not over)
            reward = 0.0
            if not over:
                self._hold_clock()
                frame, reward, over, _, _ = self.env.step(int(action[0]))
            frames.append(frame)
            rewards.append(float(reward))
            terminals.append(over and known[-1])
        return np.stack(frames), np.array(rewards), np.array(known), np.array(terminals)

    def _hold_clock(self) -> None:
        base = self.env.unwrapped
        base.step_count = min(base.step_count, base.max_steps - 1)

    def _bring_to(self, moment: int) -> np.ndarray:
        number = int(self.dataset.episode_of(np.array([moment]))[0])
        episode, position = self.dataset.episode(number), moment - int(self.dataset.starts_E[number])
        frame, _ = self.env.reset(seed=recording_seed(self.seed, number))
        for action in episode.act_out_TA[:position]:
            frame = self.env.step(int(action[0]))[0]
        if not np.array_equal(frame, episode.frames_THWC[position]):
            raise DataError(
                f"'{self.env_name}' with seed {self.seed} does not repeat episode {number} of '{self.dataset.folder}' "
                f"at frame {position}: only recordings of `dreamer4 data collect` can be replayed, where nothing but "
                "the actions and the reset decides what happens"
            )
        return frame
