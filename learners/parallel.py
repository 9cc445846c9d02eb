"""How stages 1 to 3 are spread over processes and computed, applied to the models from outside.

What is learned doesn't depend on it but for rounding: every process computes its part of a batch (`learners.parts`),
and losses and gradients are sums over the parts.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dreamer4.errors import ConfigError
from dreamer4.transformer import Layer
from learners.parts import Part

BUCKET = 1 << 24  # numbers that are sent in one message


@dataclass(frozen=True)
class ParallelConfig:
    """May change from start to start of the same run."""

    # Of several trainers: "replicate" keeps the model whole in each, "fsdp" shards it and its optimizer (FSDP2).
    sharding: Literal["replicate", "fsdp"] = "replicate"
    precision: Literal["float32", "bfloat16"] = "float32"  # of matrix products; weights, norms and losses are float32
    accumulate: int = 1  # passes per update, each of a part of the rows: less memory, the same batch
    activation_checkpointing: bool = False  # layers are computed again in the backward pass: less memory, more time
    compile: bool = False  # layers, by torch.compile, and a fused optimiser; needs a C++ compiler

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise ConfigError(f"parallel.accumulate must be at least 1, got {self.accumulate}")


def check_batch(name: str, batch: int, trainers: int, accumulate: int) -> None:
    """Raises `ConfigError` unless the rows of a batch are shared out evenly."""
    if batch % (trainers * accumulate):
        raise ConfigError(
            f"{name} ({batch}) must be a multiple of resources.trainers ({trainers}) x parallel.accumulate "
            f"({accumulate}), because every pass gets equally many rows: change one of the three"
        )


@dataclass(frozen=True)
class Unit:
    """A module that a learner enters by calling it, or by one of these methods. Its weights belong to no other unit."""

    module: nn.Module
    methods: tuple[str, ...] = ()


class Parallel:
    """One process's place among those that train a model. By default it is the only one.

    Args:
        world: number of processes. More than one: they have met in torch's default process group, and each calls the
            same methods in the same order.
    """

    def __init__(self, config: ParallelConfig | None = None, rank: int = 0, world: int = 1):
        self.config, self.rank, self.world = config or ParallelConfig(), rank, world

    @property
    def sharded(self) -> bool:
        return self.world > 1 and self.config.sharding == "fsdp"

    def parts(self) -> list[Part]:
        """What this process computes of every batch, pass by pass."""
        passes = self.config.accumulate
        return [Part(self.rank + self.world * i, self.world * passes) for i in range(passes)]

    def apply(self, units: Sequence[Unit]) -> None:
        """Compiles, checkpoints and shards the layers of a model; its weights keep their names.

        A sharded model has new parameters, so its optimizer has to be made afterwards.
        """
        for layer in (layer for unit in units for layer in layers(unit.module)):
            if self.config.activation_checkpointing:
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
            if self.config.compile:
                layer.forward = torch.compile(layer.forward)
        if self.sharded:
            from learners.sharding import shard  # a second of imports that only sharded models need

            for unit in units:
                shard(unit, layers(unit.module), self.config.precision == "bfloat16")

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """For forward passes. Nothing is cached: the teacher's cast weights would have no gradient for the student."""
        if self.config.precision == "float32":
            return nullcontext()
        return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)

    def total(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """The parts' scalars added up over the processes, without a graph; all processes get the same bits."""
        values = torch.stack([loss.detach() for loss in losses.values()])
        if self.world > 1:
            dist.all_reduce(values)
        return dict(zip(losses, values.unbind(), strict=True))

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of a part's loss to those at hand."""
        (loss * self.world if self.sharded else loss).backward()  # FSDP takes the mean over the processes

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Adds the gradients up over the processes, after the last backward pass; FSDP has done so by itself."""
        if self.world == 1 or self.sharded:
            return
        for bucket in buckets([p.grad for p in parameters if p.grad is not None]):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat)
            for gradient, total in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(total.view_as(gradient))

    def whole(self, state: Any) -> Any:
        """A nested state with every sharded tensor put together in rank 0's memory; other ranks get empty ones."""
        if not self.sharded:
            return state
        from learners.sharding import whole

        return whole(state, keep=self.rank == 0)

    def own(self, full: Tensor, like: Tensor) -> Tensor:
        """This process's share of a whole tensor, if `like` is sharded."""
        if not self.sharded:
            return full
        from learners.sharding import own

        return own(full, like)


def layers(module: nn.Module) -> list[Layer]:
    """The transformer layers within a module."""
    return [child for child in module.modules() if isinstance(child, Layer)]


def buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours, together about as large as a message should be."""
    bucket, size = [], 0
    for tensor in tensors:
        if bucket and size + tensor.numel() > BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket
