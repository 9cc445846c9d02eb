"""Randomness by address: every draw is a function of where it is used, such as (seed, "clips", step).

No generator is carried from step to step, so a resumed run, a repeated rollout and another number of workers draw the
same numbers.
"""

import json
import operator
from hashlib import blake2b

import numpy as np
import torch


def seed_of(*address: int | str) -> int:
    """63 bits that depend on every part of the address; 1 and "1" differ, and so do ("a", "b") and ("ab",)."""
    parts = [part if isinstance(part, str) else operator.index(part) for part in address]
    digest = blake2b(json.dumps(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*address: int | str) -> torch.Generator:
    """A fresh CPU generator of this address. Torch keeps 32 bits of the seed, so one pair in four billion collides."""
    return torch.Generator().manual_seed(seed_of(*address))


def numpy_generator(*address: int | str) -> np.random.Generator:
    """A fresh numpy generator of this address."""
    return np.random.default_rng(seed_of(*address))
