"""Models in shards: FSDP2 over all processes. Imported where a model is sharded, because the import takes its time.

Every layer is gathered right before it computes and freed right afterwards; gradients and optimizer are sharded like
the weights. Checkpoints are not: they hold whole tensors, so that any number of processes can go on from them.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from learners.parallel import Unit


def shard(unit: Unit, layers: Sequence[nn.Module], bfloat16: bool) -> None:
    """Shards a unit in place, every one of its layers by itself.

    Args:
        bfloat16: gather weights in this precision; shards, gradients and their sums stay float32. Inputs are left as
            they are, because bfloat16 can't hold every index of an action: autocast casts what enters a product.
    """
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")  # we change none in place
    dtype = torch.bfloat16 if bfloat16 else None
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for module in (*layers, unit.module):
        fully_shard(module, mp_policy=policy)
    for method in unit.methods:
        register_fsdp_forward_method(unit.module, method)


def whole(state: Any, keep: bool) -> Any:
    """A nested state with every sharded tensor put together. All processes have to call it.

    Args:
        keep: whether this process wants the result; else its sharded tensors come back empty.
    """
    if isinstance(state, dict):
        return {key: whole(child, keep) for key, child in state.items()}
    if not isinstance(state, DTensor):
        return state
    full = state.full_tensor()
    return full.cpu() if keep else full.new_empty(0)


def own(full: Tensor, like: Tensor) -> Tensor:
    """This process's share of a tensor that all processes hold, sharded as `like` is; nothing is sent."""
    if not isinstance(like, DTensor) or full.shape != like.shape:
        return full
    full = full.to(like.device)
    return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None)
