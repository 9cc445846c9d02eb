"""Who runs where: the only package that knows Ray and W&B. It wires the others; nothing imports it."""

import os

# Before anything imports ray, in every process of a run. A local Ray that is left to choose writes a token into the
# home folder, which other clusters of the same user then stumble over.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is reported to anybody
os.environ["WANDB_ERROR_REPORTING"] = "false"
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"  # workers use the driver's environment, whoever started it
