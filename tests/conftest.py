"""One torch thread: tests run side by side, and sums keep their order."""

import torch

torch.set_num_threads(1)
