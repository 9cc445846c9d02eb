"""What happened in a run, one JSON line per event: who took over, what was applied, lost, done again, saved.

The tests of failures and the chaos benchmark judge a run by it.
"""

import json
import time
from pathlib import Path
from typing import Any

from dreamer4.files import append_line, read_events

FILE = "ledger.jsonl"


class Ledger:
    """Appends events of one stage to a run's `ledger.jsonl`.

    Events: `coordinator` (one took over, with a lease's `token`), `start` (its loop begins, the learner is at
    `updates`), `applied` (update `step`, of rollouts with the weights `version`, by the learner's `process`), `saved`
    (`updates`), `rewind` (the learner is at `updates`, not after `expected`, for a `reason`), `lost` (rollouts
    `indices` with a `worker`), `worker` (its `state` changed), `resize` (another number of workers is `wanted`), `end`.
    """

    def __init__(self, run: Path, stage: str):
        self.path, self.stage = Path(run) / FILE, stage

    def note(self, event: str, **facts: Any) -> None:
        """Raises `RunError` if the file can't be written."""
        append_line(
            self.path, json.dumps({"event": event, "stage": self.stage, "time": round(time.time(), 3), **facts})
        )


def read_ledger(run: Path, stage: str | None = None) -> list[dict[str, Any]]:
    """Events in order, of one stage or of all."""
    return read_events(Path(run) / FILE, stage)


def broken_promises(events: list[dict[str, Any]], steps: int, save_every: int) -> list[str]:
    """What a finished stage promised and didn't keep, one sentence each; empty is as it should be.

    Every update is applied, in order; after a fault the learner goes on where its last checkpoint was, so a committed
    update is never done again and at most one interval of checkpoints is.
    """
    wrong, updates, saved = [], 0, 0
    for event in events:
        if event["event"] == "applied":
            if event["step"] != updates:
                wrong.append(f"update {event['step']} was applied where {updates} was next")
            updates = event["step"] + 1
        elif event["event"] == "saved":
            if event["updates"] < saved:
                wrong.append(f"checkpoint {event['updates']} was written after checkpoint {saved}")
            saved = max(saved, event["updates"])
        elif event["event"] in ("rewind", "start"):
            if event["updates"] < saved:
                wrong.append(f"the learner went back to {event['updates']}, behind its checkpoint {saved}")
            if updates - event["updates"] > save_every:
                wrong.append(f"{updates - event['updates']} updates were lost, the interval is {save_every}")
            # A learner may be ahead of what its coordinator lived to note.
            updates = event["updates"]
    if updates != steps:
        wrong.append(f"{updates} of {steps} updates were applied")
    if saved != steps:
        wrong.append(f"the last checkpoint is {saved}, not {steps}")
    return wrong
