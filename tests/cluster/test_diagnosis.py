import json
import math
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cluster.presets import laptop
from cluster.reports.diagnosis import DEMANDS, _learning, _numbers, _page, verdict
from cluster.settings import override

NAN = float("nan")
SHARES = {"pose": 0.99, "items": 0.99, "kinds": 0.99, "frame": 0.98}
STEP = {"n": 40, **SHARES, **{f"copy_{name}": 0.1 for name in SHARES}}
FRAMES = {name: np.zeros((2, 3, 16, 16, 3), np.uint8) for name in ("real", "imagined")}
POLICY: dict[str, Any] = {
    "dynamics": {step: {**STEP} for step in ("1", "4", "16")},
    "arrival": {"n": 17, **SHARES, "pose": 0.654},
    "reward": {
        "n_paid": 0,
        "real_when_paid": NAN,
        "imagined_when_paid": NAN,
        "imagined_otherwise": 0.01,
        "n_taken": 0,
        "real_when_taken": NAN,
        "imagined_when_taken": NAN,
    },
    "first_reward": {"n": 20, "same": 0.9, "same_step": 0.8, "missed": 0.037, "false": 0.063},
    "continues": {"n_terminal": 0, "terminal": NAN, "other": 0.99},
    "returns": {
        "n": 40,
        "imagined": {"mean": 0.3, "stderr": 0.01},
        "real": {"mean": 0.2, "stderr": 0.02},
        "correlation": 0.6,
    },
    "frames": {**FRAMES, "last": FRAMES["real"][:, 0], "known": np.ones((2, 3), bool)},
}
VALUES = {
    "expected": {"mean": 0.41, "stderr": 0.01},
    "dreamt": {"mean": 0.42, "stderr": 0.02},
    "correlation_dreamt": 0.7,
    "correlation_real": 0.6,
}
FOUND = {
    "tokenizer": {"n": 40, "pose": 1.0, "items": 1.0, "kinds": 1.0, "frame": 1.0},
    "recorded": {step: {**STEP} for step in ("1", "4", "16")},
    "distinct": {
        "tokenizer": {"n": 9, "pose": 1.0, "items": 1.0, "kinds": 1.0, "frame": 1.0},
        "recorded": {step: {**STEP} for step in ("1", "4", "16")},
        "random": {"1": {**STEP}},
    },
    "policies": {"bc": POLICY, "pmpo": {**POLICY, "values": VALUES}},
    "learning": [],
    "new_starts": {},
    "ranking": {"policies": 2, "same_moments": 1.0, "whole_episodes": NAN},
}


def spoilt(*places: tuple[str, ...]) -> dict[str, Any]:
    found = deepcopy(FOUND)
    for place in places:
        part: Any = found if place[0] in found else found["policies"]["pmpo"]
        for key in place[:-1]:
            part = part[key]
        part[place[-1]] = 0.5
    return found


def test_nothing_is_blamed_where_everything_is_well():
    assert verdict(FOUND).startswith("No part falls short")


@pytest.mark.parametrize("index", range(len(DEMANDS)))
def test_the_first_part_that_falls_short_is_blamed(index):
    """Those after it rest on it, so they fall short as well."""
    found = spoilt(*(place for _, place, _ in DEMANDS[index:]))
    assert DEMANDS[index][0] in verdict(found) and "0.500" in verdict(found)


def test_what_could_not_be_measured_is_blamed_on_nobody_and_null_in_json():
    found = deepcopy(FOUND)
    found["policies"]["pmpo"]["first_reward"]["same"] = NAN
    del found["recorded"]["16"]
    told = verdict(found)
    assert told.startswith("No part falls short") and "nothing to measure of: the world model moves" in told
    assert "sixteen steps ahead; items persist" in told and "; rewards are imagined" in told
    numbers = json.loads(json.dumps(_numbers(found), allow_nan=False))
    assert numbers["policies"]["pmpo"]["first_reward"]["same"] is None
    assert "frames" not in numbers["policies"]["pmpo"] and numbers["tokenizer"]["pose"] == 1.0


def test_learning_is_told_in_stretches_that_leave_out_what_is_not_known():
    updates = [{"step": step, "entropy": float(step), "kl": None if step < 2 else 0.5} for step in range(10)]
    found = _learning(updates, parts=5)
    assert [row["update"] for row in found] == [2, 4, 6, 8, 10]
    assert [row["entropy"] for row in found] == [0.5, 2.5, 4.5, 6.5, 8.5]
    assert math.isnan(found[0]["kl"]) and found[1]["kl"] == 0.5
    assert _learning([]) == []


def test_page_shows_sentence_numbers_and_pictures():
    run: Any = SimpleNamespace(path=SimpleNamespace(name="mine"), config=override(laptop(), ["policy.beta=0.37"]))
    learning = _learning([{"step": step, "entropy": 0.123 * step} for step in range(3)])
    text = _page(run, {**spoilt(("tokenizer", "pose")), "learning": learning})
    assert "The ceiling is here: the tokenizer keeps" in text and text.count("data:image/png") == 4
    assert "KL weight 0.37" in text and "0.246" in text
    assert text.count("0.410 ± 0.010") == text.count("0.420 ± 0.020") == 1, "values of the one policy that has them"
    assert "frame of the end (17)" in text and text.count("0.654") == 2
    assert "0.037" in text and "0.063" in text and "Where nobody has started before" not in text
    assert "0.777" in _page(run, {**FOUND, "new_starts": {"pmpo": {"n": 9, "success": 0.777}}})
    assert "0.200 ± 0.020" in text and "0.300 ± 0.010" in text
