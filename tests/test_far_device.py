"""All stages on a device that isn't the CPU: what a GPU would refuse is refused, and the numbers are the CPU's."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from alone import play, play_far
from factories import tiny_dynamics
from far_device import NAME, SETUP, FarDevice, FarGraph
from torch.utils import backend_registration

from dreamer4.engine import frame_inputs, record
from dreamer4.imagination import ImaginationConfig, WorldStream
from dreamer4.rng import generator
from dreamer4.shortcut import ShortcutConfig

pytestmark = pytest.mark.skipif(not hasattr(backend_registration, SETUP), reason="this torch can't make devices up")

DOORKEY = ("shortcut.drafts=true", "shortcut.context_share=0.0", "agent_training.context_share=0.0")
DOORKEY += ("data.half_distinct=true", "tokenizer.latent_noise=0.25", "tokenizer.latent_rms=1.5")


def elsewhere(function: Callable[..., Any], *arguments: Any) -> Any:
    """In a process of its own, which may get a device that torch never forgets."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


@pytest.mark.slow
@pytest.mark.parametrize("settings", [(), DOORKEY], ids=["laptop", "doorkey"])
def test_every_stage_gives_the_numbers_of_the_cpu(settings, tmp_path: Path):
    far, near = elsewhere(play_far, tmp_path / "far", settings), play(tmp_path / "near", settings)
    assert (far["device"], near["device"]) == (NAME, "cpu")
    far, near = dict(leaves(far)), dict(leaves(near))
    assert len(near) > 300
    assert far == pytest.approx(near, rel=1e-3, abs=1e-5, nan_ok=True)


def leaves(found: Any, name: str = "") -> Any:
    """All numbers of a record, by where they are in it."""
    children = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else None
    if children is None:
        yield from [(name, found)] if isinstance(found, int | float) else []
        return
    for key, child in children:
        yield from leaves(child, f"{name}.{key}")


def test_what_a_gpu_refuses_is_refused():
    assert elsewhere(taken) == []


def taken() -> list[str]:
    """Mistakes that nobody objects to."""
    with FarDevice():
        far, near = torch.ones(3, device=NAME), torch.ones(3)
        weight = torch.ones(3, 3, device=NAME, requires_grad=True)
        mistakes: dict[str, Callable[[], Any]] = {
            "sum": lambda: far + near,
            "in place": lambda: near.add_(far),
            "product": lambda: weight @ near,
            "list": lambda: torch.stack([far, near]),
            "mask": lambda: torch.where(near > 0, far, far),
            "array": lambda: far.numpy(),
            "numpy": lambda: np.asarray(far),
            "generator": lambda: torch.rand(3, generator=torch.Generator(), device=NAME),
            "generator in place": lambda: far.normal_(generator=torch.Generator()),
        }
        return [name for name, mistake in mistakes.items() if not refused(mistake)]


def refused(mistake: Callable[[], Any]) -> bool:
    try:
        mistake()
    except (RuntimeError, TypeError):
        return True
    return False


def test_what_a_gpu_takes_is_taken():
    assert elsewhere(computed) == ([6.0, 6.0, 6.0], [1.0, 5.0, 1.0], f"{NAME}:0")


def computed() -> tuple[list[float], list[float], str]:
    """A gradient, a tensor that was changed in place through a view, and where it is."""
    with FarDevice():
        weight = torch.ones(3, device=NAME, requires_grad=True)
        (2 * weight.to("cpu").to(NAME) * torch.tensor(3.0)).sum().backward()
        changed = torch.zeros(3, device=NAME)
        changed[1:2].fill_(4.0)
        changed += torch.ones(3).to(NAME)
        assert weight.grad is not None
        return weight.grad.cpu().tolist(), changed.cpu().tolist(), str(changed.device)


def test_a_recorded_frame_goes_on_as_the_plain_one_does():
    """Frames as a graph, whose Python runs once: rings turn, positions count and streams start anew without it."""
    plain, recorded, unprepared = elsewhere(frames_of_a_graph)
    np.testing.assert_allclose(recorded, plain, atol=1e-5)
    assert np.abs(unprepared - plain).max() > 0.1  # the control: a cache whose sizes are Python's


@torch.no_grad()
def frames_of_a_graph() -> list[np.ndarray]:
    """Features of more frames than the window, in a stream that then starts anew with other tasks."""
    torch.cuda.CUDAGraph, torch.cuda.graph = FarGraph, FarGraph.recording
    with FarDevice():
        return [frames(recorded=False), frames(recorded=True), frames(recorded=True, static=False)]


def frames(recorded: bool, static: bool = True) -> np.ndarray:
    dynamics = tiny_dynamics().to(NAME)
    shortcut, sampling = ShortcutConfig(k_max=8, context_noise=0.125), ImaginationConfig(sampling_steps=2)
    stream = WorldStream(dynamics, shortcut, sampling, 2, torch.zeros(2, dtype=torch.long, device=NAME))
    stream.cache.static = static
    if recorded:
        inputs = frame_inputs(stream)
        stream.run(*inputs)
        stream.run = record(stream, inputs)
    draw, features = generator("frames"), []
    for task in (0, 1):
        stream.restart(torch.full((2,), task, device=NAME))
        for action in (0, 1, 2, 1, 0, 2):
            _, feature = stream.generate(torch.full((2, 1), float(action), device=NAME), draw)
            assert feature is not None
            features.append(feature.cpu().numpy())
    return np.stack(features)


def test_what_can_not_be_recorded_is_refused():
    assert elsewhere(recorded_mistakes) == []


def recorded_mistakes() -> list[str]:
    with FarDevice():
        far = torch.ones(3, device=NAME)
        mistakes: dict[str, Callable[[], Any]] = {
            "value": lambda: float(far.sum()),
            "branch": lambda: bool((far > 0).all()),
            "mask": lambda: far[far > 0],
            "to the CPU": lambda: far.cpu(),
            "from the CPU": lambda: torch.ones(3, device=NAME).copy_(torch.zeros(3)),
        }

        def recorded(mistake: Callable[[], Any]) -> None:
            with FarGraph().recording():
                mistake()

        return [name for name, mistake in mistakes.items() if not refused(lambda mistake=mistake: recorded(mistake))]
