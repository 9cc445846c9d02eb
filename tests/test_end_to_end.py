"""Start here: the whole recipe in one process, on recordings of a real environment, in the order of the paper.

Far too little training to learn anything; what is shown is how the parts fit. `tests/cluster/test_quickstart.py` runs
the same on a real Ray, as users do.
"""

import copy
from pathlib import Path

import numpy as np

from actors.collector import Collector
from actors.encoder import Encoder
from actors.evaluator import AgentPolicy, Evaluator
from actors.imagination import ImaginationWorker
from dreamer4.agent import Heads, HeadsConfig
from dreamer4.data.clips import ClipSampler
from dreamer4.data.episodes import EpisodeDataset
from dreamer4.data.latents import LatentDataset, finish_latents, weights_fingerprint, write_latents
from dreamer4.data.writer import DatasetWriter
from dreamer4.dynamics import Dynamics, DynamicsConfig
from dreamer4.envs.planners import Mixture
from dreamer4.envs.registry import spec
from dreamer4.imagination import ImaginationConfig
from dreamer4.shortcut import ShortcutConfig
from dreamer4.tokenizer import Tokenizer, TokenizerConfig
from dreamer4.types import Weights
from learners.agent import AgentLearner, AgentTraining
from learners.dynamics import DynamicsLearner, DynamicsTraining
from learners.policy import PolicyLearner, PolicyTraining
from learners.tokenizer import TokenizerLearner, TokenizerTraining

ENV = "MiniGrid-Dynamic-Obstacles-5x5-v0"
SEED, STEPS = 0, 3


def test_from_recordings_to_an_agent_in_the_real_environment(tmp_path: Path) -> None:
    env = spec(ENV)

    # Recordings of an imperfect player, on disk.
    collector = Collector(ENV, Mixture(), SEED)
    with DatasetWriter(tmp_path / "data", ENV, env.frame_shape, env.actions, env.tasks) as writer:
        for episode in collector.collect(0, 40):
            writer.add(episode)
    dataset = EpisodeDataset.open(tmp_path / "data", verify=True)

    # Stage 1: the tokenizer; then the recordings as latents, by the streaming path of deployment.
    tokenizer = Tokenizer(
        TokenizerConfig(
            frame=env.frame_shape, patch=20, latents=4, pack=2, encoder_depth=2, decoder_depth=2, time_every=2
        )
    )
    training = TokenizerTraining(steps=STEPS, batch=4, length=4)
    improve(TokenizerLearner(tokenizer, training, ClipSampler(dataset, seed=SEED), SEED))
    model = weights_fingerprint(tokenizer.state_dict())
    write_latents(tmp_path / "latents", 0, Encoder(tokenizer, dataset).encode(0, dataset.episode_count), model)
    finish_latents(tmp_path / "latents", dataset, model)
    latents = LatentDataset.open(tmp_path / "latents", dataset, model)
    clips = ClipSampler(dataset, latents=latents, seed=SEED)

    # Stage 2: the world model.
    tokens, channels = tokenizer.latent_shape
    shortcut = ShortcutConfig(k_max=8, context_noise=0.125)
    sizes = DynamicsConfig(latents=tokens, channels=channels, actions=env.actions.to_json(), depth=4, k_max=8)
    dynamics = Dynamics(sizes)
    improve(DynamicsLearner(dynamics, DynamicsTraining(steps=STEPS, batch=4, long_batch=2), shortcut, clips, SEED))

    # Stage 3: task, policy and reward.
    heads = Heads(HeadsConfig(hidden=32, offsets=4), sizes.feature_width, env.actions)
    task = AgentTraining(steps=STEPS, batch=4)
    improve(AgentLearner(dynamics, heads, task, shortcut, clips, dataset.success_E, SEED))

    # Stage 4: the policy improves in imagination; only weights of the head go back to the worker.
    imagination = ImaginationConfig(horizon=3, context=4)
    policy = copy.deepcopy(heads.policy)  # the worker freezes its models
    worker = ImaginationWorker(dynamics, heads, heads.policy, clips, shortcut, imagination, batch=8, seed=SEED)
    learner = PolicyLearner(policy, sizes.feature_width, PolicyTraining(steps=STEPS, warmup_steps=1), SEED)
    before = learner.policy_weights()
    for index in range(STEPS):
        rollout = worker.rollout(index, Weights(index, learner.policy_weights()))
        assert rollout.features_BTM.shape == (8, 4, sizes.feature_width)
        metrics = learner.step(index, [rollout])
        assert all(np.isfinite(value) for value in metrics.values())
    assert any((before[name] != value).any() for name, value in learner.policy_weights().items())

    # The judge: the real environment, frame by frame.
    agent = AgentPolicy(tokenizer, dynamics, learner.policy, shortcut, SEED)
    played = Evaluator(ENV, parallel=3, first_seed=1_000_000, max_frames=20).play(agent, 0, 6)
    assert played.seeds == list(range(1_000_000, 1_000_006))
    assert all(-1 <= value <= 1 for value in played.returns)


def improve(learner: TokenizerLearner | DynamicsLearner | AgentLearner) -> None:
    for index in range(STEPS):
        assert all(np.isfinite(value) for value in learner.step(index).values())
