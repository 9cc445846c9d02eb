"""Imagination as few kernels, started by one call: `torch.compile` and CUDA graphs.

Nothing here changes what is computed. A stream computes frame by frame as written in `dreamer4.imagination` (`eager`),
with layers that torch's compiler has fused (`compiled`), or as a recording of these that is played again without Python
(`graphed`). The first frames take as long as compiling takes; later streams of the same sizes reuse what was compiled,
and `WorldStream.restart` keeps a recording.
"""

import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch._dynamo import config as dynamo

from dreamer4.decode import through_all, through_space, through_time
from dreamer4.errors import ConfigError
from dreamer4.imagination import WorldStream

Engine = Literal["eager", "compiled", "graphed"]
WARM_UP = 3  # frames before a recording, as CUDA graphs ask for
FEW = 8  # streams of a CPU's pass that is compiled in one piece; with more of them products are what takes the time
# Compiled versions, for as many sizes of streams and kinds of passes. Torch's limit of 8 would end in plain Python.
MOST_VERSIONS = 64


def say_nothing(text: str) -> None:
    """For streams that are warmed up silently."""


@torch.no_grad()
def accelerate(stream: WorldStream, engine: Engine, say: Callable[[str], None] = say_nothing) -> WorldStream:
    """Makes the stream's frames faster, in place, and warms them up; what the stream had seen is forgotten.

    Args:
        say: told what is being done, because it may take a minute.

    Raises:
        ConfigError: graphs are asked for where there is no GPU.
    """
    if engine == "eager":
        return stream
    device = stream.cache.position_B.device
    if engine == "graphed" and device.type != "cuda":
        raise ConfigError(f"imagination can be recorded as a graph on a GPU only, this is a {device.type}: compile it")
    inputs = frame_inputs(stream)
    many = device.type == "cuda" or inputs[0].shape[0] > FEW
    stream.cache.static, stream.cache.layers = True, compiled_layers(one_by_one=many)
    begin = time.monotonic()
    say(f"compiling the layers for {inputs[0].shape[0]} streams")
    with dynamo.patch(recompile_limit=MOST_VERSIONS):
        for _ in range(WARM_UP):
            stream.run(*inputs)
    say(f"compiled in {time.monotonic() - begin:.0f} s")
    if engine == "graphed":
        stream.run = record(stream, inputs)
        say(f"recorded as one graph, {time.monotonic() - begin:.0f} s in all")
    stream.restart(stream.task_B)
    return stream


@cache
def compiled_layers(one_by_one: bool) -> Callable[..., Any]:
    """`dreamer4.decode.through_all`, compiled when it is first called.

    In one piece there is no Python between the layers, which is a fifth of the time where products are small. One by
    one, layers of equal sizes are compiled once for all: where what is computed takes the time, it was faster.
    """
    if not one_by_one:
        return torch.compile(through_all, dynamic=False)
    layers = {"space": through_space, "time": through_time}
    return partial(through_all, **{name: torch.compile(layer, dynamic=False) for name, layer in layers.items()})


def frame_inputs(stream: WorldStream) -> tuple[Tensor, Tensor, Tensor]:
    """Zeros of the shapes that `WorldStream.frame` takes."""
    config, batch = stream.dynamics.config, stream.cache.position_B.shape[0]
    like = stream.dynamics.latent_in.weight
    noise = torch.zeros((batch, 1, config.latents, config.channels), device=like.device)
    return torch.zeros((batch, config.space.columns), device=like.device), noise, noise.clone()


def record(stream: WorldStream, inputs: tuple[Tensor, Tensor, Tensor]):
    """The stream's frame as a CUDA graph: inputs are copied into the recording's, outputs out of it."""
    run, graph = stream.run, torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run(*inputs)

    def replay(*given: Tensor) -> tuple[Tensor, Tensor | None]:
        for own, new in zip(inputs, given, strict=True):
            own.copy_(new, non_blocking=True)
        graph.replay()
        latents, features = outputs
        return latents.clone(), None if features is None else features.clone()

    return replay
