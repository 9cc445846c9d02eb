"""Records episodes of a scripted player of mixed quality; episode number i is a function of (seed, i)."""

from dataclasses import replace

from dreamer4.envs.episode import run_episode
from dreamer4.envs.planners import Demonstrator, Mixture, planner_for
from dreamer4.envs.registry import make
from dreamer4.errors import ConfigError
from dreamer4.rng import numpy_generator, seed_of
from dreamer4.types import Episode


def recording_seed(seed: int, index: int) -> int:
    """With which the environment is reset for recording number `index`; evaluations take theirs below 2**31."""
    return 2**31 + seed_of(seed, "recording", index) % 2**31


class Collector:
    """Plays episodes of one environment.

    Args:
        max_frames: longer episodes are cut.

    Raises:
        ConfigError: there is no such environment, nobody here can play it, or an episode would hold no action.
    """

    def __init__(self, env_name: str, mixture: Mixture, seed: int, max_frames: int | None = None):
        if max_frames is not None and max_frames < 2:
            raise ConfigError(f"max_frames {max_frames} is too short for an action; use at least 2")
        self.env_name, self.mixture, self.seed, self.max_frames = env_name, mixture, seed, max_frames
        self.env = make(env_name)
        planner_for(env_name)  # better told now than at the first episode

    def episode(self, index: int) -> Episode:
        """Recording number `index`."""
        player: Demonstrator | None = None

        def act(_frame: object) -> int:
            # Made at the first action: planners look at the state that the reset has made.
            nonlocal player
            if player is None:
                random = numpy_generator(self.seed, "demonstrator", index)
                player = Demonstrator(self.env_name, self.env, self.mixture, random)
            return player.act()

        recording = run_episode(self.env, act, recording_seed(self.seed, index), self.max_frames)
        assert player is not None
        return replace(recording, source=player.source)

    def collect(self, first: int, episodes: int) -> list[Episode]:
        """Recordings `first` to `first + episodes - 1`."""
        return [self.episode(index) for index in range(first, first + episodes)]
