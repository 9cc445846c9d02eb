"""The stages of a run, in order; each is idempotent and goes on where an earlier start left it."""

import time
from pathlib import Path

import numpy as np

from actors.collector import Collector
from actors.encoder import Encoder
from cluster.clock import Clock
from cluster.evaluation import evaluate_policy
from cluster.imagination_loop import improve_policy
from cluster.inspection import inspect
from cluster.models import RunData, load_tokenizer
from cluster.placement import result, worker
from cluster.pretrain import train_stage
from cluster.report import write_report
from cluster.run import Run
from cluster.telemetry import Progress
from dreamer4.data.episodes import EpisodeDataset
from dreamer4.data.latents import LatentsWriter
from dreamer4.data.writer import ShardWriter, merge_shards
from dreamer4.envs.registry import spec

STAGES = ("collect", "tokenizer", "encode", "dynamics", "agent", "policy", "controls", "evaluate", "inspect", "report")
