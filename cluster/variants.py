"""Stage 4 and its controls: what differs from the run's config, and where each keeps its checkpoints."""

from dataclasses import dataclass, replace

from cluster.config import RunConfig
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
