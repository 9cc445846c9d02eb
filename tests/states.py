"""Comparing and keeping what learners hold: nested weights, states and metrics, bit for bit."""

import numpy as np
import torch
from torch import Tensor


def assert_equal(left: object, right: object, place: str = "") -> None:
    """Bit for bit, through nested dicts, lists and records of tensors, arrays and numbers; names the first place."""
    if isinstance(left, dict):
        assert isinstance(right, dict) and left.keys() == right.keys(), place
        for key in left:
            assert_equal(left[key], right[key], f"{place}.{key}")
    elif isinstance(left, list | tuple):
        assert isinstance(right, list | tuple) and len(left) == len(right), place
        for index, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_equal(a, b, f"{place}.{index}")
    elif isinstance(left, Tensor):
        assert isinstance(right, Tensor) and torch.equal(left, right), place
    elif isinstance(left, np.ndarray):
        assert isinstance(right, np.ndarray) and np.array_equal(left, right), place
    else:
        assert left == right, place


def same(left: object, right: object) -> bool:
    try:
        assert_equal(left, right)
    except AssertionError:
        return False
    return True


def copied(value: object) -> object:
    """A nested state as it is now: tensors in it may be changed in place later."""
    if isinstance(value, dict):
        return {key: copied(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [copied(child) for child in value]
    return value.detach().clone() if isinstance(value, Tensor) else value
