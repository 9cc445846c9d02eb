"""Damages datasets and recordings thousands of times: is each damage an error, a reported episode, or without effect?

    nice python -m benchmarks.fuzz_data --cases 10000 --seed 0 --json fuzz.json

Every case is one seeded damage of one file, read in a forked process with bounded memory and time. It may end as

* `error`: a `DreamerError`;
* `reported`: validation names a fault, and the episodes that it calls good hold what they held;
* `same`: everything that is read is what it was;
* `import`: for recordings without `SHA256SUMS`, where nothing but the recording knows what it was: whole episodes.

Anything else is a failure: `crash`, `hang`, `memory`, `other error`, or `silent` (other data, and nobody says so).
"""

import argparse
import faulthandler
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fuzz_damage import DAMAGES, damage
from benchmarks.fuzz_targets import TARGETS, Target

SECONDS = 120  # that a case may take, also where others want the machine
MEMORY = 1 << 30  # that a case may take beyond what the process has when it begins
GOOD = ("error", "reported", "same", "import")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case, to repeat one")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sys.exit(run(options.targets.split(","), options.cases, options.seed, options.first, options.json))


def run(names: list[str], cases: int, seed: int, first: int = 0, to: Path | None = None) -> int:
    """Prints a table; returns the number of failures."""
    counts, failures, began = Counter[tuple[str, str]](), list[dict[str, Any]](), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        fixtures = [(TARGETS[name], *prepared(TARGETS[name], Path(scratch) / name)) for name in names]

        def one(number: int) -> tuple[str, str, str]:
            return case(*fixtures[number % len(names)], Path(scratch) / "broken", seed, number)

        for number, (outcome, text, what) in outcomes(one, range(first, first + cases)):
            name = names[number % len(names)]
            counts[name, outcome] += 1
            if outcome not in GOOD:
                failures.append({"case": number, "target": name, "outcome": outcome, "damage": what, "text": text})
                print(f"case {number} of {name}: {outcome} after {what}: {text[-2000:]}", flush=True)
            if (number + 1) % 500 == 0:
                print(f"{number + 1} cases, {len(failures)} failures, {time.monotonic() - began:.0f} s", flush=True)
    columns = [*GOOD, *sorted({outcome for _, outcome in counts} - set(GOOD))]
    print("| target | cases | " + " | ".join(columns) + " |")
    print("|---|" + "---:|" * (len(columns) + 1))
    for name in names:
        row = [counts[name, outcome] for outcome in columns]
        print(f"| {name} | {sum(row)} | " + " | ".join(map(str, row)) + " |")
    if to is not None:
        table = {f"{name} {outcome}": count for (name, outcome), count in counts.items()}
        to.write_text(json.dumps({"seed": seed, "cases": cases, "counts": table, "failures": failures}, indent=2))
    return len(failures)


def prepared(target: Target, folder: Path) -> tuple[Path, Any]:
    """The undamaged fixture, and what is read of it."""
    folder.mkdir(parents=True)
    target.make(folder)
    return folder, target.read(folder, None)[1]


Result = tuple[str, str, str]  # outcome, text of an error, what was damaged


def case(target: Target, whole: Path, wanted: Any, broken: Path, seed: int, number: int) -> Result:
    draw = np.random.default_rng((seed, number))
    shutil.rmtree(broken, ignore_errors=True)
    shutil.copytree(whole, broken)
    what = damage(broken, target.fit, draw, list(DAMAGES)[int(draw.integers(len(DAMAGES)))])
    try:
        outcome, _, text = target.read(broken, wanted)[0].partition("\n")
    except MemoryError:
        outcome, text = "memory", traceback.format_exc()
    except Exception:
        outcome, text = "other error", traceback.format_exc()
    return outcome, text, what


def outcomes(act: Callable[[int], Result], numbers: range) -> Iterator[tuple[int, Result]]:
    """Every case in a fork of this process, which does one after the other; who dies or hangs is replaced."""
    following = numbers.start
    while following < numbers.stop:
        process, receive = _forked(act, range(following, numbers.stop))
        with open(receive, "rb", buffering=0) as pipe:
            for number, result in _lines(pipe):
                yield number, result
                following = number + 1
        finished = following == numbers.stop
        if not finished:
            os.kill(process, signal.SIGKILL)
        status = os.waitpid(process, 0)[1]
        if not finished:
            died = os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGKILL
            how = ("crash", signal.Signals(os.WTERMSIG(status)).name) if died else ("hang", f"after {SECONDS} s")
            yield following, (*how, "see the case alone")
            following += 1


def _lines(pipe: Any) -> Iterator[tuple[int, Result]]:
    """What a fork says, until it ends or says nothing for too long."""
    waiting = b""
    while select.select([pipe], [], [], SECONDS)[0] and (part := pipe.read(1 << 16)):
        *lines, waiting = (waiting + part).split(b"\n")
        for line in lines:
            number, *result = json.loads(line)
            yield number, tuple(result)


def _forked(act: Callable[[int], Result], numbers: range) -> tuple[int, int]:
    receive, send = os.pipe()
    process = os.fork()
    if process:
        os.close(send)
        return process, receive
    try:
        os.close(receive)
        faulthandler.disable()  # a crash is a result here: it is told by its signal, not by a traceback
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with open(send, "wb", buffering=0) as pipe:
            for number in numbers:
                pipe.write(json.dumps([number, *act(number)]).encode() + b"\n")
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
