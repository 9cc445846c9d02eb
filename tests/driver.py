"""A Ray driver in a process of its own, because the process of the tests may be attached to another Ray."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, TypeVar

T = TypeVar("T")


@contextmanager
def driver(env: Mapping[str, str]) -> Iterator[Callable[..., Any]]:
    """Gives `call(function, *arguments)`, which runs there, attached to the Ray that the environment names.

    What one call leaves in the process is there for the next one.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=attach, initargs=(dict(env),)) as pool:

        def call(function: Callable[..., T], *arguments: Any) -> T:
            return pool.submit(function, *arguments).result(timeout=120)

        yield call


def attach(env: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(env)
    import ray  # not before: it looks at the environment when it is imported

    ray.init(logging_level=logging.CRITICAL, log_to_driver=False)
