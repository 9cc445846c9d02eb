"""A frozen world model divided over the ranks of a group: tensor parallelism over its width (Shoeybi et al., 2019).

Every rank computes some heads of each attention and some hidden units of each MLP. What they add to the residual
stream is summed over the ranks, twice per layer; all else (embeddings, norms, the latents' projections, the heads on
the features) is small, held whole by every rank, and computed by all of them alike. So all ranks have the same
features, bit for bit, and sample the same actions; only one rank's rollout is used.

Against the undivided model, sums are taken in another order: features differ by rounding (tests: 1e-5 in float32).
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from dreamer4.checkpoint import readable
from dreamer4.dynamics import Dynamics, DynamicsConfig
from dreamer4.errors import ConfigError, RunError
from dreamer4.transformer import SpaceLayer, TimeLayer, TransformerConfig
from learners.learner import check_shapes


@dataclass(frozen=True)
class Cut:
    """How a matrix is divided: along `dim`, every one of the `parts` fused in it by itself, in equal shares.

    Dividing the fused rows `[q | k | v]` as one would give rank 0 all the queries and rank 1 the rest.
    """

    dim: int
    parts: tuple[int, ...]

    def share(self, matrix: Any, rank: int, shards: int) -> Tensor:
        """A rank's rows or columns, in memory of their own, of a tensor or of a matrix in a safetensors file."""
        pieces, start = [], 0
        for size in self.parts:
            own = slice(start + size * rank // shards, start + size * (rank + 1) // shards)
            pieces.append(matrix[own] if self.dim == 0 else matrix[:, own])
            start += size
        return torch.cat(pieces, dim=self.dim)


def cuts(config: TransformerConfig) -> dict[str, Cut]:
    """The divided matrices of a layer: the first of each pair by outputs, the second by inputs."""
    queries, keys = config.heads * config.head_size, config.kv_heads * config.head_size
    return {
        "attention.qkv": Cut(0, (queries, keys, keys)),
        "attention.out": Cut(1, (queries,)),
        "mlp.up": Cut(0, (config.hidden, config.hidden)),
        "mlp.down": Cut(1, (config.hidden,)),
    }


def check_shards(config: DynamicsConfig, shards: int) -> None:
    """A rank holds whole heads, and as many as any other.

    Raises:
        ConfigError: they can't be divided like that.
    """
    sizes = {"heads": config.heads, "kv_heads": config.kv_heads, "hidden": config.hidden}
    if shards < 1 or any(size % shards for size in sizes.values()):
        listed = ", ".join(f"{name} ({size})" for name, size in sizes.items())
        raise ConfigError(f"{shards} shards don't divide the world model: {listed} must be multiples of the shards")


def shard_dynamics(dynamics: Dynamics, mesh: DeviceMesh, compare: bool = False) -> Dynamics:
    """Leaves of a frozen world model this rank's share, in place; no rank sends anything for it.

    Every rank calls it on the whole model, loaded by itself: a moment of the whole model's memory per rank. Where that
    is too much, see `load_sharded_dynamics`.

    Args:
        compare: after every pass the ranks compare checksums of what they computed: a small message, and on GPUs a copy
            of all tokens to the host. To look for a fault, not for every day.

    Raises:
        ConfigError: the ranks can't divide the heads or the hidden units.
    """
    check_shards(dynamics.config, mesh.size())
    rank, shards = mesh.get_local_rank(), mesh.size()
    _divide(dynamics, mesh, lambda name, cut: cut.share(dynamics.get_parameter(name).detach(), rank, shards))
    if compare:
        _compare_passes(dynamics, mesh)
    return dynamics


def load_sharded_dynamics(
    config: DynamicsConfig, weights: Path, mesh: DeviceMesh, prefix: str = "", compare: bool = False
) -> Dynamics:
    """This rank's share of a world model on disk. Nothing else is read, nor does memory ever hold more.

    So no checksum is compared, which would take reading the whole file.

    Args:
        weights: a safetensors file that all ranks can read.
        prefix: of the world model's names in the file, such as "dynamics." in the agent's checkpoints.
        compare: see `shard_dynamics`.

    Raises:
        CheckpointError: the file can't be read, or is of another model.
        ConfigError: the ranks can't divide the heads or the hidden units.
    """
    check_shards(config, mesh.size())
    rank, shards = mesh.get_local_rank(), mesh.size()
    with torch.device("meta"):  # names and shapes, no numbers
        dynamics = Dynamics(config)
    own = {name: parameter.shape for name, parameter in dynamics.named_parameters()}
    divided = tuple(f"{name}.weight" for name in cuts(dynamics.transformer.config))
    with readable(weights), safe_open(weights, "pt") as file:
        saved = [key.removeprefix(prefix) for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118
        check_shapes(own, {n: torch.Size(file.get_slice(prefix + n).get_shape()) for n in saved}, weights.name)
        whole = {name: file.get_tensor(prefix + name).clone() for name in own if not name.endswith(divided)}
        dynamics.load_state_dict(whole, strict=False, assign=True)
        _divide(dynamics, mesh, lambda name, cut: cut.share(file.get_slice(prefix + name), rank, shards))
    if compare:
        _compare_passes(dynamics, mesh)
    return dynamics.to(mesh.device_type).eval()


def _divide(dynamics: Dynamics, mesh: DeviceMesh, share: Callable[[str, Cut], Tensor]) -> None:
    """Puts shares into the place of whole matrices, and the sums over the ranks behind them.

    The layers compute on plain tensors as before: only the weights of the divided linears are DTensors, so what enters
    caches and comes out is not.
    """
    # A second of imports that only divided models need.
    from torch.distributed.tensor import DTensor, Shard
    from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

    transformer, shards = dynamics.transformer, mesh.size()
    dynamics.requires_grad_(False)
    for index, layer in enumerate(transformer.layers):
        assert isinstance(layer, SpaceLayer | TimeLayer)
        for name, cut in cuts(transformer.config).items():
            own = share(f"transformer.layers.{index}.{name}.weight", cut)
            weight = DTensor.from_local(own, mesh, [Shard(cut.dim)], run_check=False)
            layer.get_submodule(name).register_parameter("weight", nn.Parameter(weight, requires_grad=False))
        layer.attention.sizes = [size // shards for size in layer.attention.sizes]
    plan: dict[str, ParallelStyle] = {
        f"layers.*.{name}": ColwiseParallel() if cut.dim == 0 else RowwiseParallel()
        for name, cut in cuts(transformer.config).items()
    }
    parallelize_module(transformer, mesh, plan)  # takes weights that are divided already as they are


def _compare_passes(dynamics: Dynamics, mesh: DeviceMesh) -> None:
    """Makes every pass fail on all ranks unless all computed the same bits.

    All tokens are compared. Features alone would not do: where the ranks read different actions, each of them adds its
    share of a mixture of both, and the sums are again the same everywhere.
    """
    group = mesh.get_group()

    def compare(module: nn.Module, inputs: Any, tokens_BTSM: Tensor) -> None:
        own = checksum(tokens_BTSM)
        ends = torch.tensor([own, -own], device=mesh.device_type)
        dist.all_reduce(ends, dist.ReduceOp.MAX, group=group)
        highest, lowest = int(ends[0]), -int(ends[1])
        if highest != lowest:
            raise RunError(
                f"the {mesh.size()} ranks of a world model computed different things (checksums {lowest:08x} to "
                f"{highest:08x}): give them equal weights, inputs, devices and thread counts"
            )

    dynamics.transformer.register_forward_hook(compare)


def checksum(tensor: Tensor) -> int:
    """32 bits that depend on every bit of the tensor."""
    return zlib.crc32(tensor.detach().contiguous().cpu().view(torch.uint8).numpy().data)
