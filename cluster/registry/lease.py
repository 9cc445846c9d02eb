"""Keeping a lease alive while a run is written."""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cluster.registry.liveness import uptime
from cluster.registry.registry import Lease, Registry, open_registry
from cluster.registry.rules import FAILED, STOPPED, encode
from dreamer4.errors import LeaseLostError, RunError

TTL = 30.0  # seconds
DRIFT = 0.02  # by how much two machines' seconds may differ; real ones differ a thousand times less


class LeaseKeeper:
    """Acquires the lease of a run for the length of a `with` block, and renews it from a thread of its own.

    The time of the lease is counted here from before the request was sent, and in the registry from when it got there.
    So it ends here first, on a clock that nobody sets and that counts sleep. A registry that can't be reached is asked
    again and again until that moment; then the lease counts as lost, because another one may have it by then. But a
    registry that answers decides: a process that was stopped for longer goes on if nobody has taken over meanwhile.

    `lost` is set when the lease is lost, for those who wait; `check` knows it without delay.
    """

    def __init__(self, path: str | Path, holder: str, ttl: float = TTL, registry: Registry | None = None):
        self.registry = open_registry(path) if registry is None else registry
        self.holder, self.ttl = holder, ttl
        self.lost = threading.Event()
        self._error: LeaseLostError | None = None
        self._until = 0.0
        self._untold: dict[str, Any] = {}
        self._telling, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease keeper", daemon=True)

    def __enter__(self) -> Self:
        """Raises `RunError` if another holder writes the run, or the registry can't be reached."""
        sent = uptime()
        self.lease: Lease = self.registry.acquire(self.holder, self.ttl)
        self._extend(sent)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(RunError):  # out of reach: it ends by itself
            self._tell({})
        with contextlib.suppress(RunError):
            self.registry.release(self.lease)

    def check(self) -> None:
        """Returns if this process is the only writer, and another holder can't become it for half of `ttl`.

        While the registry is out of reach this waits, at most for the rest of `ttl`.

        Raises:
            LeaseLostError: the lease is lost, for ever.
        """
        while True:
            self._raise_if_lost()
            try:
                if self._until - uptime() < self.ttl / 2:
                    self._renew()
                else:
                    self.registry.check(self.lease)
                return
            except LeaseLostError as error:
                self._lose(error)
            except RunError as error:
                self._give_up_in_time(error)
            time.sleep(self.ttl / 20)

    def publish(self, **fields: Any) -> None:
        """`Registry.publish`. What can't be delivered now is delivered with the next renewal, so nobody waits for it.

        Raises:
            LeaseLostError: the lease is lost.
            ValueError, TypeError: as in `Registry.publish`.
        """
        encode(fields)  # a mistake is for the caller, now, and not for the thread
        self._raise_if_lost()
        try:
            self._tell(fields)
        except LeaseLostError as error:
            self._lose(error)
            raise
        except RunError:
            return

    @contextlib.contextmanager
    def telling_how_it_ends(self, stage: str) -> Iterator[None]:
        """Publishes that a stage has failed, or was stopped by an interrupt, where its block is left by an exception.

        Who looks at the run would take it for running otherwise.
        """
        try:
            yield
        except BaseException as error:
            with contextlib.suppress(LeaseLostError):  # whoever has the lease now tells how things are
                self.publish(stage=stage, state=FAILED if isinstance(error, Exception) else STOPPED)
            raise

    def superseded(self) -> bool:
        """Whether a later start of the same holder has taken over, or nobody can say.

        That is so on a node that was cut off and is back: what bears the run's name there is the other one's by now.
        """
        try:
            found = self.registry.read()
        except RunError:
            return True
        return found["token"] != self.lease.token and found["holder"] in (self.holder, None)

    def _tell(self, fields: dict[str, Any]) -> None:
        with self._telling:
            self._untold.update(fields)
            if self._untold:
                self.registry.publish(self.lease, **self._untold)
                self._untold = {}

    def _keep(self) -> None:
        """The thread: renews three times per ttl, and more often while that fails."""
        pause = self.ttl / 3
        while not self._stop.wait(pause):
            try:
                self._renew()
                pause = self.ttl / 3
                self._tell({})
            except LeaseLostError as error:
                return self._lose(error)
            except RunError as error:
                if self._give_up_in_time(error):
                    return
                pause = self.ttl / 20
            except BaseException as error:
                self._lose(LeaseLostError(f"the lease of run '{self.lease.run}' can't be renewed any more: {error!r}"))
                raise

    def _renew(self) -> None:
        sent = uptime()
        self.registry.renew(self.lease, self.ttl)
        self._extend(sent)

    def _extend(self, sent: float) -> None:
        self._until = max(self._until, sent + self.ttl * (1 - DRIFT))  # two threads may renew

    def _give_up_in_time(self, error: RunError) -> bool:
        if uptime() < self._until:
            return False
        self._lose(
            LeaseLostError(
                f"'{self.holder}' could not renew the lease of run '{self.lease.run}' for {self.ttl:g} s, and must not "
                f"write there any more: {error}"
            )
        )
        return True

    def _lose(self, error: LeaseLostError) -> None:
        self._error = self._error or error
        self.lost.set()

    def _raise_if_lost(self) -> None:
        if self._error is not None:
            raise self._error
