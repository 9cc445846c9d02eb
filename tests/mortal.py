"""An importer whose process is killed in the middle of its work; in a module of its own, so that an actor finds it."""

import os
import signal

from actors.importer import Report, SourceImporter


class MortalImporter(SourceImporter):
    def make(self, index: int, sources: tuple[str, ...]) -> tuple[Report, float]:
        os.kill(os.getpid(), signal.SIGKILL)
        return super().make(index, sources)
