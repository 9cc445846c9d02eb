"""A run directory's datasets and models, as the processes of a stage load them: from files, not through the driver."""

from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch.distributed.device_mesh import DeviceMesh

from cluster.run import Run
from cluster.variants import IMITATIONS, trained_by
from dreamer4.agent import Heads
from dreamer4.checkpoint import load_tensors
from dreamer4.data.clips import ClipSampler
from dreamer4.data.distinct import distinct_frames
from dreamer4.data.episodes import EpisodeDataset
from dreamer4.data.latents import LatentDataset
from dreamer4.data.loader import Batches
from dreamer4.data.mixing import Half, MixedClips
from dreamer4.data.schema import MANIFEST
from dreamer4.dynamics import Dynamics
from dreamer4.errors import ConfigError, DataError, RunError
from dreamer4.heads import PolicyHead, ScalarHead
from dreamer4.rng import seed_of
from dreamer4.tokenizer import Tokenizer
from learners.agent import AgentModel
from learners.learner import load_weights
from learners.tensor_parallel import load_sharded_dynamics


def choose_device(run: Run) -> torch.device:
    """The device of `resources.device`.

    Raises:
        RunError: a GPU is asked for and there is none.
    """
    wanted = run.config.resources.device
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise RunError("resources.device is 'cuda', but torch sees no GPU here: use resources.device=cpu or auto")
    return torch.device(wanted)


def seeded(build, *address: int | str):
    """Builds a module with initial weights that depend on the address only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(*address))
        return build()


class RunData:
    """The recordings of a run: all episodes, and which of them train; and the datasets that are mixed with them.

    Raises:
        DataError: there are none, or they are damaged or don't fit the run.
    """

    def __init__(self, run: Run):
        config = run.config
        if config.data.source is None and not (Path(run.data) / MANIFEST).is_file():
            raise DataError(
                f"run '{run.path}' has no recordings: `dreamer4 data collect --run {run.path}` makes some; a pulled "
                "run has models only, so do this with the run that was pushed"
            )
        self.run = run
        self.dataset = EpisodeDataset.open(run.data)
        self.dataset.check_fits(config.tokenizer.frame, config.dynamics.space)
        self.training_E: np.ndarray = self.dataset.split(config.data.validation, config.seed)

    @cached_property
    def mixture(self) -> list[tuple[EpisodeDataset, Path]]:
        """Further datasets, and where their latents are."""
        return [(EpisodeDataset.open(place), latents) for place, latents in self.run.mixture]

    @property
    def places(self) -> list[tuple[EpisodeDataset, Path]]:
        """All datasets, and where their latents are."""
        return [(self.dataset, self.run.latents), *self.mixture]

    def latents(self) -> LatentDataset:
        return LatentDataset.open(self.run.latents, self.dataset)

    def clips(
        self, name: str, chosen_E: np.ndarray | None = None, latents: bool = False, ends_alive: bool = False
    ) -> ClipSampler:
        """Seeded windows over the training episodes, or over those chosen."""
        episodes = self.training_E if chosen_E is None else chosen_E
        source = self.latents() if latents else None
        return ClipSampler(self.dataset, episodes, source, self.run.config.seed, name, ends_alive)

    def relevant(self) -> np.ndarray:
        """What relevant rows of stage 3 are of, as `ClipSampler.mixture` takes it."""
        relevant = self.run.config.agent_training.relevant
        if relevant == "events":
            return self.dataset.event_pairs
        if relevant == "all" and self.run.config.data.half_distinct:  # where no behaviour is cloned from them
            return self.distinct
        return self.dataset.success_E & self.training_E

    @cached_property
    def distinct(self) -> np.ndarray:
        """Frames of the training episodes in which everything that they show is equally often."""
        return distinct_frames(self.dataset, self.training_E, self.run.config.seed)

    def contexts(self) -> Batches:
        """What dreams begin with: windows that end alive; half relevant with events as tasks or `half_distinct`."""
        clips, config = self.clips("contexts", latents=True, ends_alive=True), self.run.config
        if config.agent_training.relevant == "events":
            return Half(clips, self.dataset.event_pairs)
        return Half(clips, self.distinct) if config.data.half_distinct else clips

    def mixed_clips(self, name: str, latents: bool = False) -> Batches:
        """What tokenizer and dynamics learn from: training episodes, mixed with all of further datasets by weight.

        With `data.half_distinct` half of the rows hold a frame that is drawn from the different ones.

        Raises:
            DataError: a dataset doesn't fit the recordings, or is not encoded.
        """
        clips, data, seed = self.clips(name, latents=latents), self.run.config.data, self.run.config.seed
        if data.half_distinct:
            return Half(clips, self.distinct)
        if not self.mixture:
            return clips
        samplers = [clips]
        for number, (dataset, place) in enumerate(self.mixture, 1):
            source = LatentDataset.open(place, dataset) if latents else None
            samplers.append(ClipSampler(dataset, None, source, seed, f"{name} {number}"))
        weights = data.weights or [len(sampler.axis) for sampler in samplers]
        return MixedClips(samplers, weights, seed, name)


def new_tokenizer(run: Run) -> Tokenizer:
    return seeded(lambda: Tokenizer(run.config.tokenizer), run.config.seed, "tokenizer weights")


def new_dynamics(run: Run) -> Dynamics:
    return seeded(lambda: Dynamics(run.config.dynamics), run.config.seed, "dynamics weights")


def new_heads(run: Run) -> Heads:
    dynamics = run.config.dynamics
    return seeded(
        lambda: Heads(run.config.heads, dynamics.feature_width, dynamics.space), run.config.seed, "heads weights"
    )


def load_tokenizer(run: Run) -> Tokenizer:
    tokenizer = new_tokenizer(run)
    load_weights(tokenizer, run.checkpoints("tokenizer").load().weights, "tokenizer")
    return tokenizer.to(choose_device(run))


def load_dynamics(run: Run) -> Dynamics:
    """The pretrained world model, before finetuning."""
    dynamics = new_dynamics(run)
    load_weights(dynamics, run.checkpoints("dynamics").load().weights, "dynamics")
    return dynamics.to(choose_device(run))


def load_agent(run: Run) -> AgentModel:
    """The finetuned world model with its heads; `heads.policy` is the behaviour-cloned policy."""
    model = AgentModel(new_dynamics(run), new_heads(run))
    load_weights(model, run.checkpoints("agent").load().weights, "agent")
    return model.to(choose_device(run))


def load_agent_share(run: Run, mesh: DeviceMesh) -> AgentModel:
    """As `load_agent`, but of the world model this rank's share only, read from the file without the rest.

    Raises:
        CheckpointError: the agent has not been trained in this run, or the file is damaged.
        ConfigError: the ranks can't divide the world model.
    """
    file = run.checkpoints("agent").weights_file()
    heads = new_heads(run)
    load_weights(heads, load_tensors(file, "heads."), "agent")
    dynamics = load_sharded_dynamics(run.config.dynamics, file, mesh, "dynamics.")
    return AgentModel(dynamics, heads.to(mesh.device_type))


def load_policy(run: Run, name: str) -> PolicyHead:
    """A trained policy head: `bc`, `pmpo`, or one of the controls, of which IQL may have several (`iql@0.003`).

    Raises:
        CheckpointError: it has not been trained in this run.
        ConfigError: IQL has no policy of that temperature.
    """
    policy, stage, prefix = new_heads(run).policy, trained_by(name) or name, "policy."
    if name == "bc":
        prefix = "heads.policy."
    elif name in IMITATIONS and not IMITATIONS[name].scratch:
        prefix = ""
    elif name.startswith("iql"):
        names = run.config.iql_policies
        if name not in names:
            raise ConfigError(f"IQL has no policy '{name}' in '{run.path}', but {', '.join(names)}")
        prefix = f"policies.{names.index(name)}."
    weights = run.checkpoints(stage).load().weights
    chosen = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    load_weights(policy, chosen, name)
    return policy.to(choose_device(run))


def load_actor(run: Run, name: str) -> tuple[Dynamics, PolicyHead]:
    """A policy head and the transformer whose features it reads.

    Raises:
        CheckpointError: it has not been trained in this run.
    """
    if name not in IMITATIONS or not IMITATIONS[name].scratch:
        return load_agent(run).dynamics, load_policy(run, name)
    dynamics, weights = new_dynamics(run), run.checkpoints(name).load().weights
    own = {key.removeprefix("dynamics."): value for key, value in weights.items() if key.startswith("dynamics.")}
    load_weights(dynamics, own, name)
    return dynamics.to(choose_device(run)), load_policy(run, name)


def load_value(run: Run) -> ScalarHead:
    """The value head that stage 4 has trained beside the policy."""
    policy = run.config.policy
    width = run.config.dynamics.feature_width
    value = ScalarHead(width, policy.value_hidden, policy.value_layers, 1, policy.bins)
    weights = run.checkpoints("policy").load().weights
    chosen = {key.removeprefix("value."): tensor for key, tensor in weights.items() if key.startswith("value.")}
    load_weights(value, chosen, "value")
    return value.to(choose_device(run))
