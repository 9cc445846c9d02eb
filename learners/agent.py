"""Stage 3: the world model learns the task, the policy and the reward (paper, section 3.3, equation 9).

Also the baselines without imagination: behaviour cloning of chosen recordings, by a policy head on the frozen model
(filtered WM+BC) or by a transformer that no world model's loss has shaped (BC).
"""

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from dreamer4 import flops
from dreamer4.agent import Heads, head_losses, head_targets, masked_mean
from dreamer4.data.clips import ClipSampler
from dreamer4.dynamics import Dynamics
from dreamer4.errors import ConfigError
from dreamer4.heads import PolicyHead, mtp_targets
from dreamer4.normalise import RmsNormaliser
from dreamer4.rng import generator
from dreamer4.shortcut import Levels, ShortcutConfig, corrupt
from dreamer4.types import Clip
from learners.dynamics import separate_images, shortcut_errors
from learners.learner import Learner
from learners.optim import OptimConfig
from learners.parallel import Unit
from learners.parts import WHOLE, Part, Rows


@dataclass(frozen=True)
class AgentTraining:
    steps: int = 1500
    batch: int = 32
    length: int = 8
    image_share: float = 0.3
    # Half of the rows uniform, half relevant: the model learns the video from the uniform half, behaviour from the
    # relevant one, so that neither becomes optimistic. "success": of successful episodes. "events": around task events,
    # which then are rewards and say what a row pursues. "all": every recording is of the task, all rows do both.
    relevant: Literal["all", "success", "events"] = "all"
    context_share: float = 0.0  # [G] share of frames at the signal level that the heads act at
    optim: OptimConfig = field(default_factory=OptimConfig)
    save_every: int = 250

    def __post_init__(self) -> None:
        if self.relevant not in ("all", "success", "events"):
            raise ConfigError(f"agent_training.relevant must be 'all', 'success' or 'events', got '{self.relevant}'")
        if not 0 <= self.image_share <= 1 or not 0 <= self.context_share <= 1:
            raise ConfigError(
                f"image_share ({self.image_share}) and context_share ({self.context_share}) are shares of 1"
            )


class AgentModel(nn.Module):
    """Dynamics and heads under the names that checkpoints of this stage use."""

    def __init__(self, dynamics: Dynamics, heads: Heads):
        super().__init__()
        self.dynamics, self.heads = dynamics, heads


class AgentLearner(Learner):
    """Finetunes the dynamics with agent tokens and heads on a mixture of uniform and relevant clips.

    Args:
        relevant_E: what relevant rows are of, as `ClipSampler.mixture` takes it.
        halved: where all recordings are of the task, half of the rows are relevant ones nevertheless, for the model's
            sake: finetuned on uniform rows it forgets what these seldom show. Behaviour is cloned from the others only.
    """

    stage = "agent"

    def __init__(
        self,
        dynamics: Dynamics,
        heads: Heads,
        training: AgentTraining,
        shortcut: ShortcutConfig,
        clips: ClipSampler,
        relevant_E: np.ndarray,
        seed: int,
        halved: bool = False,
    ):
        names = ["shortcut", "policy", "reward"] + (["continue"] if heads.continues is not None else [])
        super().__init__(AgentModel(dynamics, heads), RmsNormaliser(names), training.optim, training.steps)
        self.dynamics, self.heads, self.training, self.clips, self.seed = dynamics, heads, training, clips, seed
        self.shortcut = replace(shortcut, context_share=training.context_share)
        self.relevant_E, self.halved = relevant_E, halved

    def losses(self, index: int, part: Part = WHOLE) -> dict[str, Tensor]:
        noise, rows = generator(self.seed, self.stage, index), part.rows(self.training.batch)
        device = self.dynamics.latent_in.weight.device
        clip, *kinds = self.draw(index, noise, rows)
        cloned_B, modelled_B = (kind if kind is None else kind.to(device) for kind in kinds)
        losses = self.clip_losses(clip.to(device), noise, cloned_B, modelled_B, rows)
        if rows.whole:
            return losses
        own = self.counts(clip, *kinds)
        everybody = Rows(rows.batch)
        whole = self.counts(*self.draw(index, generator(self.seed, self.stage, index), everybody, contents=False))
        return {name: loss * (own[name] / max(1, whole[name])) for name, loss in losses.items()}

    def draw(
        self, index: int, noise: torch.Generator, rows: Rows, contents: bool = True
    ) -> tuple[Clip, Tensor | None, Tensor | None]:
        """Rows of batch number `index`, on the CPU; which of them teach behaviour, and which the video (None = all).

        The halves of a mixture are shuffled, so that the first rows, which `bootstrap_rows` may single out, are of both
        kinds.
        """
        batch, length, everything = self.training.batch, self.training.length, self.training.relevant == "all"
        if everything and not self.halved:
            clip, cloned_B, modelled_B = self.clips.batch(index, batch, length, rows.index, contents), None, None
        else:
            order = rows.of(torch.randperm(batch, generator=noise)).numpy()
            clip, relevant_B = self.clips.mixture(index, batch, length, self.relevant_E, order, contents)
            cloned_B, modelled_B = (~relevant_B, None) if everything else (relevant_B, ~relevant_B)
        return separate_images(clip, self.training.image_share, noise, rows), cloned_B, modelled_B

    def counts(self, clip: Clip, cloned_B: Tensor | None, modelled_B: Tensor | None) -> dict[str, int]:
        """How many places each term is the mean over."""
        modelled = clip.batch if modelled_B is None else int(modelled_B.sum())
        targets = head_targets(self.heads.config, clip, cloned_B)
        return {"shortcut": modelled * clip.length, **{name: int(mask.sum()) for name, (_, mask) in targets.items()}}

    def clip_losses(
        self,
        clip: Clip,
        noise: torch.Generator,
        cloned_B: Tensor | None,
        modelled_B: Tensor | None,
        rows: Rows | None = None,
    ) -> dict[str, Tensor]:
        """All terms of one pass: behaviour of the rows `cloned_B`, video of the rows `modelled_B`, rewards of all."""
        error_BT, features_BTM = shortcut_errors(self.dynamics, clip, self.shortcut, noise, rows, agent=True)
        modelled_BT = torch.ones_like(error_BT, dtype=torch.bool)
        if modelled_B is not None:
            modelled_BT = modelled_BT & modelled_B[:, None]
        assert features_BTM is not None
        heads = head_losses(self.heads, features_BTM.float(), clip, cloned_B)
        return {"shortcut": masked_mean(error_BT, modelled_BT), **heads}

    def estimate_flops(self, index: int) -> int:
        batch, length = self.training.batch, self.training.length
        return flops.shortcut_update(self.dynamics.config, self.shortcut, batch, length, self.heads.config)

    def units(self) -> list[Unit]:
        heads = [self.heads.policy, self.heads.reward, self.heads.continues]
        return [Unit(self.dynamics), *(Unit(head.mlp) for head in heads if head is not None)]


class FilteredBCLearner(Learner):
    """A policy head that clones chosen episodes, on the frozen agent's features of clean contexts.

    It reads the features that act in the environment (every frame at the context's signal level), starts from the
    behaviour-cloned head, and never sees the world model's imagination: what the same data gives without it.
    """

    stage = "filtered_bc"

    def __init__(
        self,
        dynamics: Dynamics,
        policy: PolicyHead,
        training: AgentTraining,
        shortcut: ShortcutConfig,
        clips: ClipSampler,
        seed: int,
    ):
        super().__init__(self.trained(dynamics, policy), RmsNormaliser(["policy"]), training.optim, training.steps)
        self.dynamics, self.policy, self.training, self.shortcut = dynamics, policy, training, shortcut
        self.clips, self.seed = clips, seed

    def trained(self, dynamics: Dynamics, policy: PolicyHead) -> nn.Module:
        """What learns."""
        dynamics.requires_grad_(False)
        return policy

    def losses(self, index: int, part: Part = WHOLE) -> dict[str, Tensor]:
        batch, length = self.training.batch, self.training.length
        device, rows = self.dynamics.latent_in.weight.device, part.rows(batch)
        clip = self.clips.batch(index, batch, length, rows.index).to(device)
        noise = generator(self.seed, self.stage, index)
        features_BTM = context_features(self.dynamics, clip, self.shortcut, noise, rows)
        actions, mask = self.targets(clip)
        loss = masked_mean(-self.policy(features_BTM).log_prob(actions), mask)
        if rows.whole:
            return {"policy": loss}
        _, everywhere = self.targets(self.clips.batch(index, batch, length, contents=False))
        return {"policy": loss * (int(mask.sum()) / max(1, int(everywhere.sum())))}

    def estimate_flops(self, index: int) -> int:
        batch, length = self.training.batch, self.training.length
        features = flops.dynamics(self.dynamics.config, batch, length, agent=True).forward
        return features + flops.mlp(batch * length, self.policy.mlp.sizes, first=True).total

    def targets(self, clip: Clip) -> tuple[Tensor, Tensor]:
        """Actions `[B, T, offsets, A]`, and bool `[B, T, offsets]` where they are known."""
        return mtp_targets(clip.act_out_BTA, clip.act_out_known_BT, clip.segment_BT, self.policy.offsets)

    def units(self) -> list[Unit]:
        return [Unit(self.dynamics), Unit(self.policy.mlp)]


class ScratchBCLearner(FilteredBCLearner):
    """The same without a world model: transformer and head start anew and learn from the actions alone."""

    stage = "scratch_bc"

    def trained(self, dynamics: Dynamics, policy: PolicyHead) -> nn.Module:
        return nn.ModuleDict({"dynamics": dynamics, "policy": policy})

    def estimate_flops(self, index: int) -> int:
        config, batch, length = self.dynamics.config, self.training.batch, self.training.length
        total = flops.dynamics(config, batch, length, agent=True)
        total += flops.mlp(batch * length, self.policy.mlp.sizes)
        predictions = flops.linear(batch * length * config.latents, config.width, config.channels)
        return total.total - predictions.backward  # made, but no loss looks at them


def context_features(
    dynamics: Dynamics, clip: Clip, shortcut: ShortcutConfig, noise: torch.Generator, rows: Rows | None = None
) -> Tensor:
    """Agent features `[B, T, M]` of a clip of latents as the acting agent sees it; with a graph if the model learns.

    Args:
        rows: which rows of the batch the clip has; None = all.
    """
    assert clip.latents_BTSD is not None
    level_BT = torch.full_like(clip.task_BT, shortcut.context_idx)
    levels = Levels(level_BT, torch.full_like(level_BT, shortcut.finest), shortcut.k_max)
    gaussian = (rows or Rows(clip.batch)).normal(clip.latents_BTSD.shape[1:], noise)
    noised_BTSD = corrupt(clip.latents_BTSD, gaussian.to(clip.latents_BTSD.device), levels.tau)
    features = dynamics(
        noised_BTSD,
        levels.tau_idx,
        levels.step_idx,
        clip.act_in_BTA,
        clip.act_in_known_BT,
        clip.segment_BT,
        clip.task_BT,  # of every frame: the episodes of a row may pursue different tasks
    ).features_BTM
    assert features is not None
    return features
