"""`dreamer4 data validate|inspect|push|pull` and `dreamer4 push|pull`. Imports are inside of functions: every start of
the command line reads this."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamer4.errors import ConfigError, DataError, RunError

if TYPE_CHECKING:
    from dreamer4.data.fault import Fault

HUB = """TARGET and SOURCE are folders, or hf://OWNER/NAME on the Hugging Face hub (pip install 'dreamer4-ray[hub]')."""
ALLOW = """Faults of an allowed kind are reported, and neither fail nor are quarantined; all kinds are in
docs/data-validation.md. A run's own recordings may repeat themselves, as a simulator does: --run allows duplicates."""


def add_verbs(add: Callable[..., argparse.ArgumentParser], parts: Any) -> None:
    """Those of `dreamer4 data`."""
    add_validate_arguments(add("validate", validate_data, "look for faults of a dataset", settings=False, to=parts))
    add_inspect_arguments(add("inspect", inspect_data, "numbers and a picture of a dataset", settings=False, to=parts))
    add_push_arguments(add("push", push_data, "publish a dataset", settings=False, to=parts), data=True)
    add_pull_arguments(add("pull", pull_data, "take a published dataset", settings=False, to=parts), data=True)


def add_run_verbs(add: Callable[..., argparse.ArgumentParser]) -> None:
    add_push_arguments(add("push", push_run, "publish the models of a run", settings=False), data=False)
    add_pull_arguments(add("pull", pull_run, "make a run of published models", settings=False), data=False)


def add_validate_arguments(verb: argparse.ArgumentParser) -> None:
    verb.epilog = ALLOW
    _add_place(verb, "folder or URL of the dataset")
    verb.add_argument("--quarantine", action="store_true", help="take bad episodes out; the former dataset is kept")
    verb.add_argument("--allow", action="append", default=[], metavar="KIND", help="of faults; may be given again")
    verb.add_argument("--threads", type=int, default=2, metavar="N", help="that decode frames")
    verb.add_argument("--json", type=Path, metavar="FILE", help="write everything found there as well")


def add_inspect_arguments(verb: argparse.ArgumentParser) -> None:
    _add_place(verb, "folder or URL of the dataset")
    verb.add_argument("--sheet", type=Path, metavar="PNG", help="by default sheet.png in the dataset's folder")
    verb.add_argument("--episodes", type=int, default=8, metavar="N", help="on the sheet")
    verb.add_argument("--fps", type=float, default=20.0, metavar="N", help="frames of an hour are counted with")
    verb.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there as well")


def add_push_arguments(verb: argparse.ArgumentParser, data: bool) -> None:
    verb.epilog = HUB
    _source(verb, data, "--data" if data else "--run", "of the dataset" if data else "of the run")
    verb.add_argument("--to", required=True, metavar="TARGET", help="where it is published")
    verb.add_argument("--license", default="other", metavar="NAME", help="as the hub names it; by default 'other'")
    verb.add_argument("--public", action="store_true", help="a new repository of the hub can be seen by everybody")


def add_pull_arguments(verb: argparse.ArgumentParser, data: bool) -> None:
    verb.epilog = HUB
    verb.add_argument("--from", dest="source", required=True, metavar="SOURCE", help="where it was published")
    verb.add_argument("--revision", metavar="NAME", help="of the hub's repository; by default the newest")
    _source(verb, data, "--out" if data else "--run", "that is made")


def _source(verb: argparse.ArgumentParser, data: bool, name: str, text: str) -> None:
    what = "DATASET" if data else "DIR"
    verb.add_argument(name, dest="place", type=Path, required=True, metavar=what, help=f"folder {text}")


def _add_place(verb: argparse.ArgumentParser, text: str) -> None:
    group = verb.add_mutually_exclusive_group(required=True)
    group.add_argument("--data", metavar="DATASET", help=text)
    group.add_argument("--run", type=Path, metavar="DIR", help="a run: its recordings")


def _place(options: argparse.Namespace) -> str | Path:
    from cluster.run import Run

    return options.data if options.run is None else Run.attach(options.run).data


def validate_data(options: argparse.Namespace) -> None:
    """Exits with 1 if there is a fault that isn't allowed, also where it was put into quarantine."""
    from dreamer4.data.validate import Validation, take_out, validate
    from dreamer4.files import write_json

    if options.threads < 0:
        raise ConfigError(f"--threads is 0 or more, got {options.threads}")
    place = _place(options)
    allow = [*options.allow, *(["duplicate"] if options.run is not None else [])]
    found: Validation = validate(place, allow, options.threads, progress=_progress)
    for fault in found.faults:
        print(fault)
    encoded = [] if options.run is None else latent_faults(options.run)
    for fault in (*found.accepted, *(encoded if "latents" in allow else [])):
        print(f"allowed: {fault}")
    encoded = [] if "latents" in allow else encoded
    for fault in encoded:
        print(fault)
    print(f"timing     {found.timing.text if found.timing else 'not looked at: no shard is without a fault'}")
    record = {**found.to_json(), "latents": [asdict(fault) for fault in encoded], "quarantine": None}
    episodes = found.manifest.episodes if found.manifest else 0
    print(f"episodes   {sum(map(len, found.good))} of {episodes} are good; {len(found.faults) + len(encoded)} faults")
    try:
        if options.quarantine and found.faults and (aside := take_out(place, found)):
            record["quarantine"] = str(aside)
            print(f"quarantine '{place}' holds the good episodes now, the former dataset is in '{aside}'")
    finally:
        if options.json is not None:
            write_json(options.json, record)
    if found.faults or encoded:
        print(f"dreamer4: '{place}' has {len(found.faults) + len(encoded)} faults", file=sys.stderr)
        raise SystemExit(1)


def latent_faults(path: Path) -> "list[Fault]":
    """Of all latents of a run; there are none before they are encoded."""
    from cluster.models import RunData
    from cluster.run import Run
    from dreamer4.data.latent_checks import check_latents

    run = Run.attach(path)
    if run.finished("encode") is None:
        return []
    dynamics = run.config.dynamics
    try:
        places = RunData(run).places
    except DataError:  # what is wrong with the recordings is said already
        return []
    shape = dynamics.latents, dynamics.channels
    return [fault for dataset, folder in places for fault in check_latents(folder, dataset, shape)]


def _progress(done: int, of: int) -> None:
    if sys.stderr.isatty():
        print(f"\rvalidate {done}/{of} shards", end="\n" if done == of else "", file=sys.stderr, flush=True)


def inspect_data(options: argparse.Namespace) -> None:
    from cluster.reports.contact_sheet import contact_sheet
    from dreamer4.data.episodes import EpisodeDataset
    from dreamer4.data.summary import summary
    from dreamer4.files import write_atomic, write_json

    if options.fps <= 0 or options.episodes < 1:
        raise ConfigError(f"--fps and --episodes are above 0, got {options.fps:g} and {options.episodes}")
    place = _place(options)
    if options.sheet is None and "://" in str(place):
        raise ConfigError("the dataset is not on this machine: say by --sheet where the picture shall be written")
    data = EpisodeDataset.open(place)
    numbers = summary(data, options.fps)
    for name, value in numbers.items():
        print(f"{name:18} {_shown(value)}")
    sheet = options.sheet or Path(place) / "sheet.png"
    write_atomic(sheet, contact_sheet(data, options.episodes))
    print(f"{'sheet':18} {sheet}")
    if options.json is not None:
        write_json(options.json, numbers)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{key} {_shown(one)}" for key, one in value.items())
    if isinstance(value, list):
        return " ".join(map(_shown, value[:16])) + (f" ... {len(value)} in all" if len(value) > 16 else "")
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def push_data(options: argparse.Namespace) -> None:
    from cluster.data.hub import push
    from dreamer4.data.publish import dataset_files

    print(f"pushed  {push(dataset_files(options.place, options.license), options.to, 'dataset', options.public)}")


def pull_data(options: argparse.Namespace) -> None:
    from cluster.data.hub import pull
    from dreamer4.data.publish import receive_dataset

    with pull(options.source, "dataset", options.revision) as folder:
        manifest = receive_dataset(folder, options.place)
    print(f"pulled  {options.place}: {manifest.episodes} episodes, {manifest.frames} frames")


def push_run(options: argparse.Namespace) -> None:
    from cluster.data.hub import push
    from cluster.data.publish_run import run_files
    from cluster.run import Run

    print(f"pushed  {push(run_files(Run.attach(options.place), options.license), options.to, 'model', options.public)}")


def pull_run(options: argparse.Namespace) -> None:
    from cluster.data.hub import pull
    from cluster.data.publish_run import receive_run

    if (options.place / "config.json").exists():
        raise RunError(f"there is a run in '{options.place}' already: give another --run")
    with pull(options.source, "model", options.revision) as folder:
        stages = receive_run(folder, options.place)
    print(f"pulled  {options.place}: {', '.join(stages)}")
