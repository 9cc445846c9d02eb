"""One torch thread: tests run side by side, and sums keep their order. And no registry of runs but the tests' own."""

import os

import torch

torch.set_num_threads(1)
os.environ.pop("DREAMER4_REGISTRY", None)
