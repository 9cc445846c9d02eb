"""Looks at a run's models on validation episodes, in a process of its own."""

from cluster.run import Run


def inspect(run: Run) -> None:
    run.finish("inspect", {})
