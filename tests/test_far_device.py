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
from far_device import NAME, FarDevice

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
