"""Plain classes as Ray actors, and their answers as plain values and errors."""

import os
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, TypeVar, cast

import ray
from ray.actor import ActorClass, ActorProxy
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError, RayError, RayTaskError

from dreamer4 import errors
from dreamer4.errors import DreamerError, RunError

T = TypeVar("T")


@dataclass(frozen=True)
class Worker(Generic[T]):
    """A class with a place to run in. `remote(...)` starts an actor of it, with the arguments of its constructor."""

    actor: ActorClass[T]
    options: dict[str, Any]
    name: str

    def remote(self, *args: Any, **kwargs: Any) -> ActorProxy[T]:
        return self.actor.options(**self.options, name=_unique(self.name)).remote(*args, **kwargs)


def worker(
    cls: type[T], *, cpus: float = 1, gpus: float = 0, name: str = "", threads: int = 1, restarts: int = 0
) -> Worker[T]:
    """Makes a Ray actor class of a plain one, which keeps its type.

    Args:
        name: what the dashboard and error messages call its actors; numbered, by default the class's name.
        threads: of OpenMP, so of torch's operations.
        restarts: how often a lost actor is started again and asked again; for those without a state only.
    """
    options = {
        "num_cpus": cpus,
        "num_gpus": gpus,
        "max_restarts": restarts,
        "max_task_retries": restarts,
        "runtime_env": environment(threads),
    }
    return Worker(_actor_class(cls), options, name or cls.__name__)


def environment(threads: int) -> dict[str, Any]:
    """The runtime environment of an actor whose torch may use so many threads."""
    return {"env_vars": {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}}


def give_way(actor: Any) -> None:
    """Has an actor's process compute after all others on its cores, with the first task that the actor is sent.

    For imagination workers: dozens of them wake at once when new weights come, and the learner, which all of them wait
    for, would get its turn after theirs.
    """
    actor.__ray_call__.remote(_lowest_priority)


def _lowest_priority(instance: Any) -> None:
    os.nice(19)


@cache
def _actor_class(cls: type[T]) -> ActorClass[T]:
    return ray.remote(cls)


_numbers: Counter[str] = Counter()


def _unique(name: str) -> str:
    """Ray refuses a name twice."""
    _numbers[name] += 1
    return f"{name} {_numbers[name]}"


def result(reference: Any) -> Any:
    """The value, or list of values, behind references.

    Raises:
        DreamerError: the one that the actor raised, also where its constructor did.
        RunError: the actor is gone, such as killed for want of memory.
    """
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if mistake := mistake_behind(error):
            raise mistake from None
        raise
    except RayActorError as error:
        if mistake := mistake_behind(error):
            raise mistake from None
        raise _lost(error) from error
    except (OutOfMemoryError, ObjectLostError) as error:
        raise RunError(f"Ray lost a part of the run, {_sentence(str(error))}: start the same command again") from error


def mistake_behind(error: RayError) -> DreamerError | None:
    """What one of our classes has raised in its actor, also in a constructor; None where Ray itself reports."""
    if isinstance(error, RayTaskError):
        return error.cause if isinstance(error.cause, DreamerError) else None
    return _from_constructor(error) if isinstance(error, RayActorError) else None


def objects_lost(error: RayError) -> bool:
    """Whether arguments of a call were lost with the node that held them; the called actor is well then."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return isinstance(cause, ObjectLostError)


def cause_of(error: BaseException) -> str:
    """One line for logs."""
    if isinstance(error, RayTaskError):
        error = error.cause
    return f"{type(error).__name__}: {_sentence(str(error))}"


def _from_constructor(error: RayActorError) -> DreamerError | None:
    """Ray keeps an error of a constructor as text only: its last entry names the class and says the sentence."""
    found = re.search(r"^dreamer4\.errors\.(\w+): (.*)\Z", str(error), re.MULTILINE | re.DOTALL)
    if found is None:
        return None
    return cast(type[DreamerError], getattr(errors, found[1]))(found[2].strip())


def _lost(error: RayActorError) -> Exception:
    if error.actor_init_failed:
        return RuntimeError(str(error))
    facts = dict(re.findall(r"^\t(\w+): (.+)$", str(error), re.MULTILINE))
    name = facts.get("name") or facts.get("class_name") or error.actor_id
    return RunError(
        f"actor '{name}' died, {_sentence(str(error))}: start the same command again to go on from the last checkpoint"
    )


def _sentence(text: str) -> str:
    """The cause in Ray's message, without the list of facts before it and the advice after it."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("\t")]
    cause = lines[-1] if lines else "for an unknown cause"
    return cause.partition(". ")[0].rstrip(".").removeprefix("The actor is dead because ")
