"""The layering rules of CONTRIBUTING.md, executed.

`dreamer4` is the paper in plain PyTorch, `learners` improve models, `actors` act, and `cluster` alone knows where they
run. The rules are read from the syntax tree, so an import inside a function or behind TYPE_CHECKING counts as well.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RUNTIME = {"ray", "redis", "wandb"}  # who runs where, and who is told: only cluster/ may know
NOT_SHIPPED = {"tests", "benchmarks"}
FORBIDDEN = {
    "dreamer4": RUNTIME | NOT_SHIPPED | {"learners", "actors", "cluster", "torch.distributed"},
    "learners": RUNTIME | NOT_SHIPPED | {"actors", "cluster"},
    "actors": RUNTIME | NOT_SHIPPED | {"learners", "cluster"},
    "cluster": NOT_SHIPPED,
}


def modules(package: str, root: Path = ROOT) -> dict[str, Path]:
    """Dotted name -> file, for every module of a package."""
    files = sorted((root / package).rglob("*.py"))
    return {".".join(f.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): f for f in files}


def _dotted(node: ast.expr, names: dict[str, str]) -> str | None:
    """`torch.distributed.barrier` as text, its first name resolved through the imports of the file."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute) and (owner := _dotted(node.value, names)):
        return f"{owner}.{node.attr}"
    return None


def uses(source: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of all that a file imports, by statement, by call with a literal name, or by attribute.

    A relative import comes out with its leading dots.
    """
    nodes = list(ast.walk(ast.parse(source)))
    names: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                bound = alias.name if alias.asname else alias.name.split(".")[0]
                names[alias.asname or bound] = bound
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            for alias in node.names:
                names[alias.asname or alias.name] = f"{origin}.{alias.name}"
                yield node.lineno, f"{origin}.{alias.name}"
    for node in nodes:
        if isinstance(node, ast.Attribute) and (name := _dotted(node, names)) and name[0] != ".":
            yield node.lineno, name
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def violations(package: str, root: Path = ROOT) -> list[str]:
    """One sentence per line that breaks the rules of its package."""
    found = set()
    for path in modules(package, root).values():
        for line, name in uses(path.read_text(encoding="utf-8")):
            place = f"{path.relative_to(root).as_posix()}:{line}"
            if name.startswith("."):
                found.add(f"{place} imports {name}: write it as an absolute import")
            found |= {f"{place} uses {bad}" for bad in FORBIDDEN[package] if f"{name}.".startswith(f"{bad}.")}
    return sorted(found)


def _module_level(body: list[ast.AST]) -> Iterator[ast.AST]:
    """The statements that run on import: not those of functions, nor those behind TYPE_CHECKING."""
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        for field in ("body", "orelse", "handlers", "finalbody"):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _module_level(getattr(node, field, []))


def cycle(root: Path = ROOT) -> list[str]:
    """Modules that need each other to be imported, or an empty list."""
    ours = {name: path for package in FORBIDDEN for name, path in modules(package, root).items()}
    graph: dict[str, set[str]] = {}
    for name, path in ours.items():
        statements = _module_level([ast.parse(path.read_text(encoding="utf-8"))])
        imports = [node for node in statements if isinstance(node, ast.Import | ast.ImportFrom)]
        needed = {needed for node in imports for _, needed in uses(ast.unparse(node))}
        graph[name] = {n if n in ours else n.rpartition(".")[0] for n in needed} & ours.keys() - {name}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


@pytest.mark.parametrize("package", FORBIDDEN)
def test_package_keeps_to_its_layer(package):
    assert package in modules(package), f"{package}/__init__.py is missing, so there is nothing to check"
    assert violations(package) == []


def test_modules_need_each_other_in_one_direction_only():
    assert cycle() == []


@pytest.mark.parametrize("package", FORBIDDEN)
def test_every_module_imports_cleanly_and_brings_no_higher_layer(package):
    """In a fresh interpreter: what a third library pulls in is seen too (torch brings torch.distributed itself)."""
    higher = FORBIDDEN[package] - NOT_SHIPPED - {"torch.distributed"} or {"none"}
    script = (
        "import importlib, sys\n"
        f"for name in {list(modules(package))}:\n"
        "    importlib.import_module(name)\n"
        f"print(*sorted({higher} & sys.modules.keys()))\n"
    )
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("dreamer4", "import ray"),
        ("dreamer4", "import ray.util.placement_group as groups"),
        ("dreamer4", "from learners.policy import PolicyLearner"),
        ("dreamer4", "from torch import distributed"),
        ("dreamer4", "import torch\ntorch.distributed.barrier()"),
        ("dreamer4", "import torch as t\ndef f():\n    t.distributed.barrier()"),
        ("dreamer4", "from .types import Clip"),
        ("learners", "def f():\n    import wandb"),
        ("learners", "import importlib\nimportlib.import_module('redis')"),
        ("learners", "from actors import evaluator"),
        ("actors", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from cluster.stages import Stage"),
        ("actors", "import learners.policy"),
        ("cluster", "from tests.fakes import FakeEnv"),
    ],
)
def test_planted_violation_is_found(tmp_path, package, line):
    """Negative control of the checker."""
    (tmp_path / package / "deep").mkdir(parents=True)
    (tmp_path / package / "deep" / "planted.py").write_text(f'"""A module."""\n{line}\n')
    assert len(violations(package, tmp_path)) == 1


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("dreamer4", '"""ray, redis and wandb are only words here."""\nray = 1'),
        ("dreamer4", "import rayleigh, torch\ntorch.nn.Linear(1, 1)"),
        ("learners", "import torch.distributed as dist\nfrom dreamer4.types import Clip"),
        ("actors", "from dreamer4.types import Clip"),
        ("cluster", "import ray, redis, wandb\nfrom learners.policy import PolicyLearner\nimport actors.evaluator"),
    ],
)
def test_permitted_import_passes(tmp_path, package, line):
    (tmp_path / package).mkdir()
    (tmp_path / package / "planted.py").write_text(f"{line}\n")
    assert violations(package, tmp_path) == []


def test_planted_cycle_is_found_and_a_deferred_import_is_none(tmp_path):
    """Negative control of the cycle finder."""
    (tmp_path / "dreamer4").mkdir()
    (tmp_path / "dreamer4" / "one.py").write_text("from dreamer4 import two\n")
    (tmp_path / "dreamer4" / "two.py").write_text("from dreamer4.one import thing\n")
    assert set(cycle(tmp_path)) == {"dreamer4.one", "dreamer4.two"}
    (tmp_path / "dreamer4" / "two.py").write_text("def f():\n    from dreamer4.one import thing\n")
    assert cycle(tmp_path) == []
