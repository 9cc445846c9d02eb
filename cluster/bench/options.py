"""What `dreamer4 bench` can measure, for the command line: light, because `dreamer4 --help` reads it."""

import argparse
from pathlib import Path

TRAINED = ("tokenizer", "dynamics", "agent")


def add_kinds(verb: argparse.ArgumentParser) -> None:
    """Every kind has options of its own; `options.what` names it."""
    kinds = verb.add_subparsers(dest="what", required=True, metavar="WHAT")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        kind = kinds.add_parser(name, help=text, description=text, allow_abbrev=False)
        kind.add_argument("--json", type=Path, metavar="FILE", help="write the result there as well")
        return kind

    kind = add("loop", "what stage 4 costs beside imagining and learning")
    kind.add_argument("--minutes", type=float, default=0.0, metavar="M", help="of a long run that must not spill")
    kind.add_argument("--most-workers", type=int, default=64, metavar="N", help="of stand-ins, by default 64")

    add("data", "random clips per second of a core, beside films and tar files, and the memory of a reader")

    kind = add("training", "updates of stages 1 to 3 on made-up data: frames per second, and share of the peak")
    presets = "common (the sizes that other implementations were measured at), or a preset; by default common"
    kind.add_argument("--preset", default="common", metavar="NAME", help=presets)
    kind.add_argument("--stage", choices=TRAINED, default="dynamics")
    kind.add_argument("--batch", type=int, metavar="N", help="rows, by default as in the preset, one on minecraft")
    kind.add_argument("--length", type=int, metavar="N", help="frames per row, by default as in the preset")
    kind.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    kind.add_argument("--threads", type=int, default=1, metavar="N", help="of a CPU, by default 1")
    precision = "of matrix products, by default bfloat16 on a GPU, else float32"
    kind.add_argument("--precision", choices=["float32", "bfloat16"], help=precision)
    kind.add_argument("--compile", action="store_true", help="the layers, as parallel.compile=true does")
    kind.add_argument("--checkpointing", action="store_true", help="as parallel.activation_checkpointing=true does")
    kind.add_argument("--turns", type=int, default=7, metavar="N", help="updates that are timed, by default 7")
    kind.add_argument("--profile", type=Path, metavar="DIR", help="write a trace there, and a summary of one update")

    kind = add("imagination", "imagined frames per second with random weights, beside a plain transformer's")
    text = "common, laptop, crafter, paper-size or another preset; by default common"
    kind.add_argument("--preset", default="common", metavar="NAME", help=text)
    kind.add_argument(
        "--batches", type=int, nargs="+", default=[1, 2, 16], metavar="N", help="streams, by default 1 2 16"
    )
    kind.add_argument("--frames", type=int, default=16, metavar="N", help="of a turn, by default 16")
    kind.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    kind.add_argument("--threads", type=int, default=1, metavar="N", help="of a CPU, by default 1")
    precision = "of the weights, by default bfloat16 on a GPU, else float32"
    kind.add_argument("--precision", choices=["float32", "bfloat16"], help=precision)
    engines = "by default graphed on a GPU, else eager"
    kind.add_argument("--engine", choices=["eager", "compiled", "graphed"], help=engines)
    kind.add_argument("--turns", type=int, default=5, metavar="N", help="that are timed, by default 5")
    kind.add_argument("--profile", type=Path, metavar="DIR", help="write a trace there, and a summary of two steps")
