"""`dreamer4 diagnose|report|compare|runs|dashboard|presets`: commands that only look. Imports are inside of functions:
every start of the command line reads this."""

import argparse
import inspect
import json
import textwrap
from collections.abc import Callable
from pathlib import Path

from dreamer4.errors import ConfigError

DASHBOARD = "Without an address, or without Prometheus, it shows what the run directories hold, also of ended runs."


def add_look_verbs(add: Callable[..., argparse.ArgumentParser]) -> None:
    verb = add("diagnose", diagnose, "which part of a run is the ceiling, against the real environment", settings=False)
    verb.add_argument("--windows", type=int, default=256, metavar="N", help="validation windows, by default 256")
    verb.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there as well")
    add_run(verb)

    verb = add("report", report, "write the report of a run again", settings=False)
    add_run(verb)

    verb = add("compare", compare, "several runs side by side", settings=False)
    verb.add_argument("runs", nargs="+", type=Path, metavar="RUN")

    verb = add("runs", runs, "how far every run is, and who writes it", settings=False)
    verb.add_argument(
        "--root", type=Path, metavar="DIR", help="only runs below; by default runs, with Redis all it knows"
    )
    verb.add_argument("--json", type=Path, metavar="FILE", help="write everything known of them there as well")

    verb = add("dashboard", dashboard, "how fast stage 4 is and why, on a page in the browser", settings=False)
    verb.epilog = DASHBOARD
    verb.add_argument("--run", type=Path, metavar="DIR", help="only this run; by default all that are known")
    verb.add_argument("--address", metavar="URL", help="of Ray's dashboard; by default RAY_DASHBOARD_ADDRESS")
    verb.add_argument("--prometheus", metavar="URL", help="one that scrapes the cluster already")
    verb.add_argument("--port", type=int, metavar="N", help="of the page, by default the first free one from 8300 on")
    verb.add_argument("--open", action="store_true", help="open it in the browser")

    verb = add("presets", presets, "list the presets, or print one with all keys that can be set", settings=False)
    verb.add_argument("name", nargs="?", metavar="NAME")


def add_run(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--run", type=Path, required=True, metavar="DIR", help="run directory")


def diagnose(options: argparse.Namespace) -> None:
    if options.windows < 1:
        raise ConfigError(f"--windows must be at least 1, got {options.windows}")
    from cluster.reports.diagnosis import diagnose as diagnose_run
    from cluster.reports.diagnosis import print_diagnosis
    from cluster.run import Run
    from dreamer4.files import write_json

    run = Run.attach(options.run)
    found = diagnose_run(run, options.windows)
    if options.json is not None:
        write_json(options.json, found)
    print_diagnosis(run.path, found)


def report(options: argparse.Namespace) -> None:
    from cluster.reports.report import write_report
    from cluster.run import Run

    print(write_report(Run.attach(options.run)))


def compare(options: argparse.Namespace) -> None:
    from cluster.reports.compare import compare as compare_runs

    print(compare_runs(options.runs))


def runs(options: argparse.Namespace) -> None:
    from cluster.registry.registry import list_runs
    from cluster.registry.table import table
    from dreamer4.files import write_json

    found = list_runs(options.root)
    print(table(found))
    if options.json is not None:
        write_json(options.json, found)


def dashboard(options: argparse.Namespace) -> None:
    from cluster.dashboard.command import dashboard as serve

    serve(options.run, options.address, options.prometheus, options.port, options.open)


def presets(options: argparse.Namespace) -> None:
    from cluster.config import COMPUTED
    from cluster.presets import PRESETS, parameters, preset
    from cluster.settings import to_json

    if options.name is not None:
        sections = to_json(preset(options.name))
        for section, _, key in (name.partition(".") for name in COMPUTED):  # refused where they are set
            del sections[section][key]
        print(json.dumps(sections, indent=2))
        return
    width = 1 + max(map(len, PRESETS))
    for name, build in PRESETS.items():
        tokenizer, dynamics = parameters(build())
        about = inspect.cleandoc(build.__doc__ or "").partition("\n\n")[0]
        print(textwrap.fill(about, 120, initial_indent=f"{name:{width}}", subsequent_indent=" " * width))
        print(f"{'':{width}}tokenizer {tokenizer / 1e6:.3g} M, dynamics {dynamics / 1e6:.4g} M parameters")
