"""The command line. Imports are inside of functions here, and only here, so that `dreamer4 --help` answers at once."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.data import tools
from cluster.data.import_command import add_import_arguments, import_data
from cluster.look_command import add_look_verbs, add_run
from dreamer4.errors import ConfigError, DreamerError, RunError

if TYPE_CHECKING:
    from cluster.run import Run

POLICIES = (
    "bc",
    "pmpo",
    "filtered_bc",
    "filtered_bc_return",
    "scratch_bc",
    "scratch_bc_success",
    "scratch_bc_return",
    "iql",  # `iql@0.003`: with that temperature of iql_training.also
    "horizon_1",
    "shuffled",
    "random",
    "demonstrator",
)
TRAINED = ("tokenizer", "dynamics", "agent", "policy")
DESCRIPTION = "Dreamer 4 in PyTorch and Ray: learn a world model from recordings, then learn to act inside it."
SETTINGS = """settings: KEY=VALUE or --KEY VALUE, such as seed=1 dynamics.width=128 tokenizer.frame=[64,64,3];
`dreamer4 presets NAME` prints them all. A run that was interrupted goes on with the same command."""
SUBMIT = """The exit status is that of the command. An interrupt stops the job; submitted again it goes on where it was.
Paths, but not URLs, are taken from the current folder, also those of settings. The run, and datasets, have to be on a
disk that the nodes of the cluster share."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, 2 for a mistake of the user, 130 after an interrupt."""
    # A shell that starts us in the background, or a CI, may have the interrupt ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Ray attaches to a cluster without the token that it is given, unless it is told to use it.
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        parser = build_parser()
        options, rest = parser.parse_known_args(argv)
        options.settings = read_settings(rest)
        if options.settings and not options.takes_settings:
            raise ConfigError(f"`{options.verb}` takes no settings, got '{options.settings[0]}'")
        options.act(options)
        return 0
    except DreamerError as error:
        print(f"dreamer4: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ndreamer4: interrupted; the same command goes on", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    from cluster.bench.options import add_kinds

    parser = argparse.ArgumentParser("dreamer4", description=DESCRIPTION, allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")

    def add(name: str, act: Callable[[argparse.Namespace], None], text: str, settings: bool = True, to: Any = verbs):
        verb = to.add_parser(
            name,
            help=text,
            description=text,
            epilog=SETTINGS if settings else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        verb.set_defaults(act=act, takes_settings=settings)
        return verb

    verb = add("quickstart", quickstart, "all stages, from recordings to a report")
    smoke = "the same path in a minute, too short to learn anything"
    add_preset(verb).add_argument("--smoke", action="store_const", dest="preset", const="smoke", help=smoke)
    verb.add_argument("--run", type=Path, metavar="DIR", help="by default runs/quickstart, or runs/PRESET")

    data = verbs.add_parser("data", help="recordings", description="recordings", allow_abbrev=False)
    parts = data.add_subparsers(dest="stage", required=True, metavar="COMMAND")
    verb = add("collect", train, "let the demonstrator play and record it", to=parts)
    add_preset(verb)
    add_run(verb)
    add_import_arguments(add("import", import_data, "recordings in another format", settings=False, to=parts))
    tools.add_verbs(add, parts)

    verb = add("train", train, "one stage of training")
    verb.add_argument("stage", choices=TRAINED)
    add_preset(verb)
    add_run(verb)

    verb = add("encode", train, "encode the recordings with the trained tokenizer, once")
    verb.set_defaults(stage="encode", preset=None)
    add_run(verb)

    verb = add("evaluate", evaluate, "play a policy in the real environment")
    verb.add_argument("--policy", type=policy, default="pmpo", metavar="NAME", help=", ".join(POLICIES))
    verb.add_argument("--episodes", type=int, metavar="N", help="by default evaluation.episodes")
    verb.add_argument("--json", type=Path, metavar="FILE", help="write the result there as well")
    add_run(verb)

    add_look_verbs(add)
    tools.add_run_verbs(add)

    add_kinds(add("bench", bench, "measure this machine", settings=False))

    verb = add("submit", submit, "do a command on a running Ray cluster, as a job", settings=False)
    verb.usage = "dreamer4 submit [--address URL] [--no-wait] [--python PATH] -- COMMAND..."
    verb.epilog = SUBMIT
    verb.add_argument("--address", metavar="URL", help="of the dashboard; by default RAY_DASHBOARD_ADDRESS")
    verb.add_argument("--no-wait", action="store_true", help="don't wait for the end and print nothing of it")
    verb.add_argument("--python", default="python", metavar="PATH", help="the interpreter there, by default python")
    verb.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND...", help="any other command")

    return parser


def add_preset(verb: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    group = verb.add_mutually_exclusive_group()
    group.add_argument("--preset", metavar="NAME", help="where settings start from, by default the run's own")
    return group


def policy(name: str) -> str:
    """A name that some run may have a policy of; `iql@0.003` and the like are those of further temperatures."""
    if name not in POLICIES and not name.startswith("iql@"):
        raise argparse.ArgumentTypeError(f"invalid choice: '{name}' (choose from {', '.join(POLICIES)})")
    return name


def read_settings(rest: Sequence[str]) -> list[str]:
    """`KEY=VALUE`, `--KEY=VALUE` and `--KEY VALUE` as `KEY=VALUE`; keys with a dash in front have a dot in them.

    Raises:
        ConfigError: a word is none of these.
    """
    settings, words = [], iter(rest)
    for word in words:
        key, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("-") and "." not in key and key not in ("env", "seed"):
            raise ConfigError(f"unknown option '{word}': see dreamer4 COMMAND --help")
        if not equals:
            following = next(words, None) if word.startswith("--") else None
            if following is None:
                raise ConfigError(f"'{word}' is not a setting: write KEY=VALUE, such as seed=1")
            value = following
        settings.append(f"{key}={value}")
    return settings


def open_run(path: Path, settings: list[str], preset_name: str | None = None, default: str | None = None) -> "Run":
    """The run, made or continued.

    Args:
        settings: on top of the preset asked for, else of the run's own config.
        default: the preset of a new run where none is asked for; None makes no new run then.
    """
    from cluster.config import assign, configure
    from cluster.presets import preset
    from cluster.run import Run, read_config, saved

    config = None
    if preset_name is None and not saved(path):
        preset_name = default
    if preset_name is not None:
        config = configure(preset(preset_name), settings)
    elif settings and saved(path):
        config = assign(read_config(path), settings)  # what follows from the recordings stays; they may be gone
    run = Run.open(path, config)
    print(f"run     {run.path}\nconfig  {run.path / 'config.json'}", flush=True)
    return run


def quickstart(options: argparse.Namespace) -> None:
    path = options.run or Path("runs", options.preset or "quickstart")
    with open_run(path, options.settings, options.preset, default="laptop") as run:
        from cluster.stages import STAGES

        run_stages(run, STAGES)


def train(options: argparse.Namespace) -> None:
    """One stage; those before it have to be complete."""
    default = "laptop" if options.stage == "collect" else None
    with open_run(options.run, options.settings, options.preset, default) as run:
        from cluster.stages import STAGES

        for stage in STAGES[: STAGES.index(options.stage)]:
            if run.finished(stage) is None:
                raise RunError(
                    f"stage '{stage}' of run '{run.path}' is not complete, and '{options.stage}' needs it: "
                    "do the stages in order, or all of them by `dreamer4 quickstart`"
                )
        run_stages(run, [options.stage])


def run_stages(run: "Run", stages: Sequence[str]) -> None:
    from cluster.runtime import ray_session
    from cluster.stages import run_stage

    with ray_session(run.config) as dashboard:
        if dashboard:
            token = os.environ.get("RAY_AUTH_TOKEN_PATH")
            print(f"ray     {dashboard}{f'  (asks for the token in {token})' if token else ''}", flush=True)
        for stage in stages:
            run_stage(stage, run)


def evaluate(options: argparse.Namespace) -> None:
    if options.episodes is not None and options.episodes < 1:
        raise ConfigError(f"--episodes must be at least 1, got {options.episodes}")
    with open_run(options.run, options.settings) as run:
        from cluster.config import unplayable

        if not run.config.judged:  # no mistake: a recipe goes on to its report
            print(unplayable(run.config.env), flush=True)
            return
        from cluster.runtime import ray_session
        from cluster.stages import evaluate_policy
        from dreamer4.files import write_json

        with ray_session(run.config):
            measured = evaluate_policy(run, options.policy, options.episodes or run.config.evaluation.episodes)
        if options.json is not None:
            write_json(options.json, measured)
        for name, value in measured.items():
            if not isinstance(value, list | dict):
                print(f"{name:14} {value:.4g}" if isinstance(value, float) else f"{name:14} {value}")


def bench(options: argparse.Namespace) -> None:
    from cluster.bench.command import main as bench_main

    bench_main(options)


def submit(options: argparse.Namespace) -> None:
    from cluster.submit import Client, absolute, address, source

    command = absolute(options.command, Path.cwd())
    read_settings(build_parser().parse_known_args(command)[1])  # a mistake is told at once, not by the job
    client = Client(address(options.address, os.environ))
    job = client.submit(command, options.python, source())
    print(f"job     {job} on {client.url}", flush=True)
    if options.no_wait:
        print(f"follow  ray job logs --address {client.url} --follow {job}")
    else:
        raise SystemExit(client.follow(job))


if __name__ == "__main__":
    sys.exit(main())
