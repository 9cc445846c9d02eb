"""A device that isn't the CPU, for machines without one: its tensors are the CPU's behind a wall.

What a GPU refuses is refused: operations on tensors of both devices, random numbers of the CPU's generators, and arrays
without a copy to the CPU. All else is computed on the CPU, so the numbers are the CPU's, and code that runs here puts
every tensor where it belongs. Kernels, precisions and streams of a real GPU are not tried by it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

NAME = "far"
SETUP = "_setup_privateuseone_for_python_backend"  # of newer versions of torch, not of 2.6
COPIES = ("aten::copy_", "aten::_to_copy", "aten::_copy_from")  # what may have tensors of both devices
# What the host has to wait for: a value, or a size that depends on values.
WAITED_FOR = ("aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::masked_select", "aten::is_nonzero")


class FarTensor(Tensor):
    """Has the shape and the strides of a CPU tensor and holds it; is on the far device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "FarTensor":
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        far = Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, device=torch.device(NAME, 0), **layout)
        far.held = held
        return far

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


class FarDevice(TorchDispatchMode):
    """Within a `with` block there is a device `far`. For processes of their own: torch never forgets a device."""

    def __enter__(self) -> Any:
        getattr(backend_registration, SETUP)(NAME)
        return super().__enter__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


class FarGraph:
    """What `torch.cuda.CUDAGraph` is for a GPU: operations that are done again on the same memory, without Python.

    As there, what is recorded may neither wait for a value nor take or give a tensor of the CPU.
    """

    recorder: "FarGraph | None" = None  # the one that records now

    def __init__(self):
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        FarGraph.recorder = self
        try:
            yield
        finally:
            FarGraph.recorder = None

    def note(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """An operation that was done, by the CPU tensors that are held; raises `RuntimeError` if a GPU had refused."""
        name = func._schema.name
        chosen = tree_leaves(args[1]) if name.startswith("aten::index") else []
        if name in WAITED_FOR or any(isinstance(one, Tensor) and one.dtype is torch.bool for one in chosen):
            raise RuntimeError(f"{name}: a graph can't wait for values")
        self.calls.append((func, args, kwargs, tensors_in(result)))

    def replay(self) -> None:
        for func, args, kwargs, results in self.calls:
            if func.is_view:
                continue
            for old, new in zip(results, tensors_in(func(*args, **kwargs)), strict=True):
                if old is not new:
                    old.copy_(new)


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation on the CPU tensors that are held; its results are on the device where a GPU's would be."""
    tensors = tensors_in((args, kwargs))
    far = [tensor for tensor in tensors if isinstance(tensor, FarTensor)]
    asked = kwargs.get("device")
    result_is_far = bool(far) if asked is None else torch.device(asked).type == NAME
    check(func._schema.name, tree_leaves((args, kwargs)), bool(far), result_is_far)
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    args, kwargs = tree_map_only(FarTensor, lambda tensor: tensor.held, (args, kwargs))
    result = func(*args, **kwargs)
    if (graph := FarGraph.recorder) is not None and (tensors or tensors_in(result)):
        if not result_is_far or len(far) < len(tensors):
            raise RuntimeError(f"{func._schema.name}: a graph can't have tensors of the CPU")
        graph.note(func, args, kwargs, result)
    if not result_is_far:
        return result
    given = {id(getattr(tensor, "held", tensor)): tensor for tensor in tensors}
    # What is changed in place stays the same tensor.
    return tree_map_only(Tensor, lambda t: given[id(t)] if id(t) in given else FarTensor(t), result)


def check(name: str, values: list[Any], far: bool, result_is_far: bool) -> None:
    """Raises `RuntimeError` where a GPU would; it takes numbers, tensors without a dimension, from the CPU."""
    for value in values:
        if isinstance(value, torch.Generator) and (far or result_is_far):
            raise RuntimeError(f"{name}: expected a generator of '{NAME}', found one of '{value.device}'")
        near = isinstance(value, Tensor) and not isinstance(value, FarTensor) and value.dim() > 0
        if near and far and name not in COPIES:
            raise RuntimeError(f"{name}: expected all tensors to be on '{NAME}', found {tuple(value.shape)} on the CPU")


def tensors_in(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
