"""Looks at the models of a run: reconstructions, imagined against real frames, heads on imagined states."""

import time
from pathlib import Path

from actors.inspector import Inspector
from cluster.clock import Clock
from cluster.placement import result, worker
from cluster.run import Run
