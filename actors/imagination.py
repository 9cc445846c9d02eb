"""The worker that imagines: contexts from disk, rollouts out, policy weights in (paper, section 3.3).

Stateless but for its weights: rollout number i is a function of (seed, i, weights), so a lost one is imagined again
anywhere. A plain class; `cluster.placement` makes an actor of it.
"""

import copy

import torch

from dreamer4.agent import Heads
from dreamer4.data.loader import Batches
from dreamer4.dynamics import Dynamics
from dreamer4.engine import accelerate
from dreamer4.heads import PolicyHead
from dreamer4.imagination import Dream, ImaginationConfig, WorldStream, imagine
from dreamer4.packing import pack
from dreamer4.rng import generator
from dreamer4.shortcut import ShortcutConfig
from dreamer4.types import Clip, Rollout, Weights


class ImaginationWorker:
    """Holds the frozen world model and a copy of the policy.

    Args:
        contexts: sampler of latent clips that rollouts start from.
        shuffle_actions: negative control, see `dreamer4.imagination.imagine`.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        heads: Heads,
        policy: PolicyHead,
        contexts: Batches,
        shortcut: ShortcutConfig,
        config: ImaginationConfig,
        batch: int,
        seed: int,
        shuffle_actions: bool = False,
    ):
        self.dynamics, self.heads, self.policy = dynamics, heads, copy.deepcopy(policy)
        for module in (self.dynamics, self.heads, self.policy):
            module.requires_grad_(False).eval()
        pack(self.dynamics.transformer)
        self.contexts, self.shortcut, self.config = contexts, shortcut, config
        self.batch, self.seed, self.shuffle_actions = batch, seed, shuffle_actions
        self.version = 0
        self.stream: WorldStream | None = None  # made by the first rollout, where making it takes long

    @property
    def device(self) -> torch.device:
        return self.dynamics.latent_in.weight.device

    def set_weights(self, weights: Weights) -> int:
        """Takes a version of the policy head; returns its number. Arrays from the object store are read-only."""
        self.policy.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in weights.policy.items()})
        self.version = weights.version
        return self.version

    def context(self, index: int) -> Clip:
        """The contexts of rollout number `index`."""
        return self.contexts.batch(index, self.batch, self.config.context).to(self.device)

    def dream(self, index: int) -> tuple[Clip, Dream]:
        context = self.context(index)
        noise = generator(self.seed, "imagination", index)
        if self.stream is None and self.config.engine != "eager":
            tasks = context.task_BT[:, -1]
            stream = WorldStream(self.dynamics, self.shortcut, self.config, self.batch, tasks)
            self.stream = accelerate(stream, self.config.engine, print)
        dream = imagine(
            self.dynamics,
            self.heads,
            self.policy,
            context,
            self.shortcut,
            self.config,
            noise,
            shuffle_actions=self.shuffle_actions,
            stream=self.stream,
        )
        return context, dream

    def rollout(self, index: int, weights: Weights | None = None) -> Rollout:
        """Imagines rollout number `index` with the newest weights given."""
        if weights is not None and weights.version != self.version:
            self.set_weights(weights)
        context, dream = self.dream(index)
        return Rollout(
            features_BTM=dream.features_BTM.float().cpu().numpy(),
            act_out_BTA=dream.act_out_BTA.cpu().numpy(),
            log_prob_BT=dream.log_prob_BT.float().cpu().numpy(),
            reward_BT=dream.reward_BT.float().cpu().numpy(),
            continue_BT=dream.continue_BT.float().cpu().numpy(),
            task_B=context.task_BT[:, -1].cpu().numpy(),
            index=index,
            version=self.version,
        )
