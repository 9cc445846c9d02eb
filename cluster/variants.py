"""Stage 4, its controls and the baselines: what differs from the run's config, and where each keeps its checkpoints."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from cluster.config import RunConfig
from dreamer4.data.episodes import EpisodeDataset
from dreamer4.imagination import ImaginationConfig


@dataclass(frozen=True)
class Variant:
    """The headline or a control."""

    stage: str = "policy"
    horizon: int | None = None  # instead of the config's, with as many imagined frames per update
    shuffle_actions: bool = False  # the world model gets another trajectory's actions

    def imagination(self, config: RunConfig) -> tuple[ImaginationConfig, int]:
        """How its rollouts are imagined, and the contexts of each."""
        imagination, batch = config.imagination, config.policy.batch
        if self.horizon is not None:
            batch = batch * imagination.horizon // self.horizon
            imagination = replace(imagination, horizon=self.horizon)
        return imagination, batch


VARIANTS = {
    "policy": Variant(),
    "horizon_1": Variant("horizon_1", horizon=1),
    "shuffled": Variant("shuffled", shuffle_actions=True),
}


@dataclass(frozen=True)
class Imitation:
    """A clone of recordings: a baseline without imagination."""

    section: str  # of the config, with its training
    of: Literal["all", "success", "return"]  # the recordings: all, those that succeeded, the best share by return
    scratch: bool = False  # with a transformer of its own, that is no world model

    def chosen(self, dataset: EpisodeDataset, training_E: np.ndarray, best_share: float) -> np.ndarray:
        """Bool `[E]`, the training episodes that are imitated; of equal returns the earlier ones.

        The best share leaves out the worst return, as long as there is another: where most recordings get nothing, a
        tenth of them would be filled up with failures.
        """
        if self.of != "return":
            return training_E & dataset.success_E if self.of == "success" else training_E
        candidates = np.flatnonzero(training_E)
        returns = dataset.returns_E[candidates]
        best = np.argsort(-returns, kind="stable")[: max(1, round(best_share * len(candidates)))]
        chosen_E = np.zeros_like(training_E)
        chosen_E[candidates[best]] = True
        return chosen_E & (dataset.returns_E > returns.min()) if returns.max() > returns.min() else chosen_E


IMITATIONS = {
    "scratch_bc": Imitation("scratch_bc_training", "all", scratch=True),
    "scratch_bc_success": Imitation("scratch_bc_training", "success", scratch=True),
    "scratch_bc_return": Imitation("scratch_bc_training", "return", scratch=True),
    "filtered_bc": Imitation("filtered_bc_training", "success"),
    "filtered_bc_return": Imitation("filtered_bc_training", "return"),
}


def trained_by(policy: str) -> str | None:
    """The stage that trains a policy; None of those that nothing trains."""
    stages = {"random": None, "demonstrator": None, "bc": "agent", "pmpo": "policy"}
    kind = policy.partition("@")[0]  # IQL has a policy for every temperature
    return stages.get(kind, kind)


def training_of(config: RunConfig, stage: str) -> Any:
    """The section of the config by which a stage trains."""
    return getattr(config, IMITATIONS[stage].section if stage in IMITATIONS else f"{stage}_training")
