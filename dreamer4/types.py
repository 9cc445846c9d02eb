"""The records that travel between the parts, and the timing contract that they all share.

Shape legend, used as suffix of names everywhere:
`B` batch, `T` frames, `H W C` image, `P` patches, `Q` values per patch, `S` latent tokens per frame, `D` latent
channels, `M` model width, `N` heads, `K` head size, `A` action columns (see `dreamer4.actions`).

Timing contract (paper, sections 3.2 and 3.3; one convention for the whole code base):

* `act_in[t]` is the action that led to frame t, `act_out[t]` the action that is chosen at frame t, so
  `act_in[t + 1] == act_out[t]` within an episode. A first frame has no known `act_in`.
* `reward[t]` and `continue[t]` are on arrival at frame t: caused by `act_in[t]`. A first frame has no known reward;
  `continue[t] == 0` if and only if frame t is terminal.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor


class _Record:
    """Changes every tensor of a frozen dataclass at once."""

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same with every tensor changed; what is no tensor stays."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        changed = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **changed)  # type: ignore[type-var]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        return self.map(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """A copy in memory from which a GPU can read at any time."""
        return self.map(Tensor.pin_memory)


@dataclass(frozen=True)
class Episode:
    """One recording in storage order. Made by collectors and importers, kept by `dreamer4.data`.

    T frames carry T - 1 actions: the last row of `act_out_TA` is zero and not known.
    """

    frames_THWC: np.ndarray  # uint8
    act_out_TA: np.ndarray  # float32, chosen at frame t
    act_known_T: np.ndarray  # bool, false at the last frame and wherever the recording has no action
    reward_T: np.ndarray  # float32, on arrival; [0] is 0
    terminal: bool  # the last frame is terminal; false where the recording was cut
    success: bool = False  # reached the task's goal
    task: int = 0
    source: str = ""
    truncated: bool = False  # the environment stopped it at a limit; a recording that was merely cut has neither
    events_TK: np.ndarray | None = None  # bool, [t, k]: the goal of task k was reached on arrival at frame t

    @property
    def length(self) -> int:
        return int(self.frames_THWC.shape[0])

    @property
    def episode_return(self) -> float:
        return float(self.reward_T[1:].sum())


@dataclass(frozen=True)
class Ending:
    """How a recording that comes in parts ended; the fields are those of `Episode`."""

    terminal: bool = False
    truncated: bool = False
    success: bool = False


@dataclass(frozen=True)
class EpisodePart:
    """The next T frames of one recording, T any number from 1. Made by importers, kept by `dreamer4.data`.

    Hours of video never are in memory at once: a recording is an iterator of parts in order, and the last one, and only
    that, has an `end`. Rows mean what they mean in `Episode`, so the last row of a part that isn't the last one may
    know its action, and only the first row of the first part has to have reward 0.
    """

    frames_THWC: np.ndarray  # uint8
    act_out_TA: np.ndarray  # float32
    act_known_T: np.ndarray  # bool
    reward_T: np.ndarray  # float32
    events_TK: np.ndarray | None = None  # bool
    end: Ending | None = None

    @property
    def length(self) -> int:
        return int(self.frames_THWC.shape[0])


@dataclass(frozen=True)
class Clip(_Record):
    """A batch of windows on the datasets' frame axis. Made by `dreamer4.data.clips`, read by the learners.

    A row may hold the end of one episode and the beginning of the next: `segment_BT` counts the episodes within the
    row from 0, and no frame may see another segment. `video_BTHWC` is absent from clips of latents and
    `latents_BTSD` from clips of frames.
    """

    act_in_BTA: Tensor  # float32
    act_in_known_BT: Tensor  # bool; false at first frames
    act_out_BTA: Tensor  # float32
    act_out_known_BT: Tensor  # bool; false at last frames
    reward_BT: Tensor  # float32, on arrival
    reward_known_BT: Tensor  # bool; false at first frames
    continue_BT: Tensor  # float32, 0 where frame t is terminal
    segment_BT: Tensor  # int64
    task_BT: Tensor  # int64
    video_BTHWC: Tensor | None = None  # uint8
    latents_BTSD: Tensor | None = None  # float32

    @property
    def batch(self) -> int:
        return self.segment_BT.shape[0]

    @property
    def length(self) -> int:
        return self.segment_BT.shape[1]


@dataclass(frozen=True)
class Rollout:
    """Imagined trajectories, H steps each. Made by `actors.imagination`, read by `learners.policy`.

    Numpy, because it travels through the object store without a copy; arrays arrive read-only. Frame 0 is the last
    frame of the context, so there are H + 1 features, H actions, and rewards and continues of frames 1 to H.
    """

    features_BTM: np.ndarray  # [B, H + 1, M] agent-token features
    act_out_BTA: np.ndarray  # [B, H, A] float32, chosen at frame t
    log_prob_BT: np.ndarray  # [B, H] of act_out under the policy that chose it
    reward_BT: np.ndarray  # [B, H] on arrival at frame t + 1
    continue_BT: np.ndarray  # [B, H] probability that frame t + 1 is not terminal
    task_B: np.ndarray  # [B] int64
    index: int  # of the rollout in the run; its noise is a function of (seed, index)
    version: int  # of the policy weights that chose the actions


@dataclass(frozen=True)
class Weights:
    """What goes back from the learner to the workers: the policy head, by version."""

    version: int
    policy: dict[str, np.ndarray]
