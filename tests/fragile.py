"""A real encoder that is killed once; in a module of its own, because other processes import it."""

import os
import signal

from cluster.stages import LatentWriter


class FragileWriter(LatentWriter):
    """The first one to encode shard 1 is killed halfway."""

    def make(self, index: int) -> float:
        flag = self.run.path / "killed"
        if index == 1 and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().make(index)
