"""Everything that a run is made of, in one tree of frozen dataclasses, checked when it is built."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from cluster.config_checks import problems
from cluster.data.recorded import check_mixture, recorded
from cluster.paths import absolute_setting
from cluster.settings import override
from dreamer4.agent import HeadsConfig
from dreamer4.dynamics import DynamicsConfig, check_shortcut
from dreamer4.envs.planners import Mixture
from dreamer4.envs.registry import EnvSpec, playable, spec
from dreamer4.errors import ConfigError
from dreamer4.imagination import ImaginationConfig
from dreamer4.shortcut import ShortcutConfig
from dreamer4.tokenizer import TokenizerConfig
from learners.agent import AgentTraining
from learners.dynamics import DynamicsTraining
from learners.iql import IQLTraining
from learners.parallel import ParallelConfig
from learners.policy import PolicyTraining
from learners.tokenizer import TokenizerTraining

# Baselines and negative controls beside the headline; `cluster.variants` says what each is.
IMITATION = ("scratch_bc", "scratch_bc_success", "scratch_bc_return", "filtered_bc", "filtered_bc_return")
CONTROLS = (*IMITATION, "iql", "horizon_1", "shuffled")
COMPUTED = ("dynamics.latents", "dynamics.channels", "dynamics.actions", "dynamics.tasks")  # by `resolve`


@dataclass(frozen=True)
class DataConfig:
    source: str | None = None  # a finished dataset, folder or URL, as `data import` makes; none: recordings are made
    mixture: tuple[str, ...] = ()  # further datasets for tokenizer and dynamics, such as films without actions
    weights: tuple[float, ...] = ()  # of the recordings and of each of those; none: every frame as often as others
    half_distinct: bool = False  # [G] half of the rows of the world model, and of contexts, hold distinct frames
    frames: int = 60_000  # to record, in whole episodes
    shard_frames: int = 10_000  # per Arrow file
    codec: Literal["auto", "raw", "zstd", "h264"] = "raw"  # how frames are kept; auto: by their size
    validation: float = 0.05  # share of the episodes that nothing trains on
    demonstrator: Mixture = field(default_factory=Mixture)  # who plays them


@dataclass(frozen=True)
class EvaluationConfig:
    """How policies are measured in the real environment."""

    episodes: int = 200  # of every policy
    parallel: int = 50  # environments in lockstep, per actor
    actors: int = 2
    first_seed: int = 1_000_000  # far from those of the recordings
    max_frames: int = 1000  # longer episodes are cut
    windows: int = 512  # validation windows that each measurement of the models looks at


@dataclass(frozen=True)
class ResourceConfig:
    """Where and how wide the run is; may change from start to start of the same run, as may evaluation and logging."""

    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU where the process is given one
    trainers: int = 1  # processes that train stages 1 to 3 together, one plain one or several by Ray Train
    min_trainers: int | None = None  # go on with so few while nodes are missing; none: wait for all
    trainer_gpus: float = 0.0  # of every trainer; fractions share one
    workers: int = 1  # that imagine, at first
    min_workers: int | None = None  # the run may shrink to; none: as many as `workers`
    max_workers: int | None = None  # the run may grow to, as long as the learner waits for rollouts; none: `workers`
    scale_seconds: float = 10.0  # between decisions on the number of workers
    shards: int = 1  # processes, and GPUs, that hold one world model together
    worker_gpus: float = 0.0  # of every shard of a worker
    rollout_timeout: float = 600.0  # seconds after which a worker that doesn't answer is replaced
    trainer_threads: int = 1  # more than one changes the order of sums, and with it the last bits
    worker_threads: int = 1
    collectors: int = 2
    peak_tflops: float | None = None  # of every trainer's device, for its utilisation; none: that of GPUs we know
    storage: str | None = None  # URL of a folder, of this run alone, that training's checkpoints are copied to as well
    node_price: float = 0.0  # of a node, per hour, in your currency; for the dashboard's cost per million frames
    object_store_mb: int = 500  # of a Ray that the run starts itself
    dashboard_port: int | None = None  # of such a Ray; none: the first free one from 8265 on

    def worker_bounds(self) -> tuple[int, int]:
        """Fewest and most workers of stage 4."""
        least = self.workers if self.min_workers is None else self.min_workers
        most = self.workers if self.max_workers is None else self.max_workers
        return least, most


@dataclass(frozen=True)
class LoggingConfig:
    wandb: bool = False
    mode: Literal["offline", "online"] = "offline"
    project: str = "dreamer4"


@dataclass(frozen=True)
class RunConfig:
    """One experiment. Presets are complete ones (`cluster.presets`); `resolve` computes what data and tokenizer fix."""

    env: str
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    tokenizer_training: TokenizerTraining = field(default_factory=TokenizerTraining)
    dynamics: DynamicsConfig = field(default_factory=DynamicsConfig)
    shortcut: ShortcutConfig = field(default_factory=ShortcutConfig)
    dynamics_training: DynamicsTraining = field(default_factory=DynamicsTraining)
    heads: HeadsConfig = field(default_factory=HeadsConfig)
    agent_training: AgentTraining = field(default_factory=AgentTraining)
    imagination: ImaginationConfig = field(default_factory=ImaginationConfig)
    policy: PolicyTraining = field(default_factory=PolicyTraining)
    controls: tuple[str, ...] = ()
    filtered_bc_training: AgentTraining = field(default_factory=lambda: AgentTraining(steps=300))
    scratch_bc_training: AgentTraining = field(default_factory=AgentTraining)
    iql_training: IQLTraining = field(default_factory=IQLTraining)
    best_share: float = 0.1  # of the recordings, by return: what clones of the best imitate
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    resources: ResourceConfig = field(default_factory=ResourceConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    @property
    def judged(self) -> tuple[str, ...]:
        """Policies that are played, in the order of tables: none without an environment, and nobody knows who made the
        recordings of others."""
        if not playable(self.env):
            return ()
        baselines = ("random", "demonstrator") if self.data.source is None else ("random",)
        further = self.iql_policies[1:] if "iql" in self.controls else ()
        return (*baselines, "bc", *self.controls, *further, "pmpo")

    @property
    def iql_policies(self) -> tuple[str, ...]:
        """One for every temperature: `iql`, and `iql@0.003` and the like for those of `iql_training.also`."""
        return tuple(f"iql{name}" for name in self.iql_training.temperatures)

    def __post_init__(self) -> None:
        """Raises `ConfigError` on combinations that can't work; each section has checked itself."""
        check_shortcut(self.dynamics, self.shortcut)
        for problem in problems(self):
            raise ConfigError(problem)
        for name in self.controls:
            if name not in CONTROLS:
                raise ConfigError(f"controls may hold {', '.join(CONTROLS)}, got '{name}'")


def unplayable(env: str) -> str:
    """What whoever wants policies judged is told, where `RunConfig.judged` has none."""
    return f"evaluate: '{env}' can't be played here, so no policy is judged by it"


def resolve(config: RunConfig, env: EnvSpec | None = None) -> RunConfig:
    """Fills in the sizes of the world model that tokenizer and environment fix.

    Args:
        env: what the environment gives and takes; by default that of the recordings in `data.source`, or else looked up
            under `config.env`.

    Raises:
        ConfigError: the environment is unknown or not that of the recordings, or the tokenizer is not made for it.
        DataError: there are no recordings in `data.source`, or in a dataset of `data.mixture`.
    """
    if env is None:
        env = spec(config.env) if config.data.source is None else recorded(config.data.source, config.env)
    check_mixture(config.data.mixture, env)
    tokenizer = config.tokenizer
    if tuple(env.frame_shape) != tokenizer.frame:
        shape = ",".join(str(size) for size in env.frame_shape)
        raise ConfigError(
            f"'{config.env}' gives frames of {tuple(env.frame_shape)}, but tokenizer.frame is {tokenizer.frame}: "
            f"add tokenizer.frame=[{shape}]"
        )
    training = config.tokenizer_training
    if tokenizer.lpips_weight > 0 and not (training.perceptual_vgg and training.perceptual_linear):
        raise ConfigError(
            f"tokenizer.lpips_weight is {tokenizer.lpips_weight}, but no perceptual network is given: set "
            "tokenizer_training.perceptual_vgg and tokenizer_training.perceptual_linear, or tokenizer.lpips_weight=0"
        )
    dynamics = replace(
        config.dynamics,
        latents=tokenizer.latents // tokenizer.pack,
        channels=tokenizer.channels * tokenizer.pack,
        actions=env.actions.to_json(),
        tasks=len(env.tasks),
    )
    return replace(config, dynamics=dynamics)


def configure(base: RunConfig, assignments: Iterable[str]) -> RunConfig:
    """A preset with `KEY=VALUE`s of the command line, resolved. Paths are taken from this folder.

    Raises:
        ConfigError: unknown key, wrong type, impossible combination, or a key that is computed from others.
    """
    return resolve(assign(base, assignments))


def assign(config: RunConfig, assignments: Iterable[str]) -> RunConfig:
    """A config with `KEY=VALUE`s of the command line on top, and nothing else changed.

    Raises:
        ConfigError: as `override` does, or a key is computed from others.
    """
    assignments = list(assignments)
    for assignment in assignments:
        key = assignment.partition("=")[0]
        if key in COMPUTED:
            raise ConfigError(f"{key} follows from the tokenizer and the environment: set tokenizer.* or env instead")
    return override(config, [absolute_setting(assignment, Path.cwd()) for assignment in assignments])
