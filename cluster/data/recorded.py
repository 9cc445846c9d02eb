"""What recordings that were made elsewhere fix of a run's config, and whether datasets can be mixed with them."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from dreamer4.envs.registry import EnvSpec, playable, spec
from dreamer4.errors import ConfigError

if TYPE_CHECKING:
    from dreamer4.data.schema import Recording


def recorded(source: str, name: str) -> EnvSpec:
    """What the recordings in `source` show and hold. If the environment `name` can be played, they have to be of it."""
    recording = _recording(source)
    env = EnvSpec(name, recording.frame, recording.actions, recording.tasks)
    if playable(name) and (spec(name).frame_shape, spec(name).actions) != (env.frame_shape, env.actions):
        raise ConfigError(
            f"'{source}' holds recordings of '{recording.env}', whose frames or actions are not those of '{name}': set "
            "env to theirs; one that can't be played here is fine, policies are then not evaluated"
        )
    return env


def check_mixture(places: Iterable[str], env: EnvSpec) -> None:
    """Raises `ConfigError` where a dataset shows or holds something else than the recordings that it is mixed with."""
    for place in places:
        other = _recording(place)
        pairs = {
            "frames": (tuple(other.frame), tuple(env.frame_shape)),
            "actions": (other.actions.to_json(), env.actions.to_json()),
            "tasks": (list(other.tasks), list(env.tasks)),
        }
        for name, (its, ours) in pairs.items():
            if its != ours:
                raise ConfigError(
                    f"data.mixture: the {name} of '{place}' are {its}, those of the recordings are {ours}: films are "
                    "given the same by `dreamer4 data import video --like RECORDINGS`"
                )


def _recording(place: str) -> "Recording":
    from dreamer4.data.schema import Manifest  # every start of the command line reads this module
    from dreamer4.data.storage import folder_at

    return Manifest.read(folder_at(place)).recording
