"""The container image, without Docker: a linter, and what the file says against the rest of the repository."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
HADOLINT = str(Path(sys.executable).parent / "hadolint")
EXTRAS = ("gpu", "video")  # that the image has


@pytest.fixture(scope="module")
def dockerfile(deploy: Path) -> str:
    return (deploy / "Dockerfile").read_text()


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def constraints(deploy: Path) -> dict[str, Version]:
    lines = [line for line in (deploy / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    return {name: Version(version) for name, _, version in (line.partition("==") for line in lines)}


def problems(dockerfile: str) -> list[str]:
    """What the linter says, and what breaks a rule of ours."""
    done = subprocess.run([HADOLINT, "--no-color", "-"], input=dockerfile, capture_output=True, text=True)
    found = done.stdout.splitlines()
    lines = re.sub(r"\\\n", "", dockerfile).splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    if not users or not re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]):
        found.append("the last USER is not a number other than 0")  # Kubernetes' runAsNonRoot wants a number
    if sum(line.startswith("FROM ") for line in lines) < 2:
        found.append("what builds is not left behind")
    if not any(line.startswith("HEALTHCHECK ") for line in lines):
        found.append("nobody sees whether it is healthy")
    if any(re.match(r"(COPY|ADD)( --\S+)* \.", line) for line in lines):
        found.append("all that lies there is copied")
    if re.search(r"\b(RAY_AUTH_TOKEN|PASSWORD|SECRET)\b", dockerfile):
        found.append("a secret is built in")
    found += [f"'{line}' has no version" for line in lines if re.match(r"FROM [^:$]*( |$)", line)]
    return found


def test_dockerfile_is_clean(dockerfile):
    assert problems(dockerfile) == []


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("USER 1000:1000", "USER root", "DL3002"),
        ("USER 1000:1000", "USER dreamer", "the last USER"),
        ("USER 1000:1000\n", "", "the last USER"),
        (":${PYTHON}-slim-bookworm", "", "DL3006"),
        (":${PYTHON}-slim-bookworm", ":latest", "DL3007"),
        ("COPY cluster cluster", "COPY . .", "all that lies there"),
        ("HEALTHCHECK", "# HEALTHCHECK", "healthy"),
        ("RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN=abc", "a secret is built in"),
        ("RUN python -m venv", "RUN cd / && python -m venv", "DL3003"),
        ("COPY --from=build", "COPY --from=biuld", "DL3022"),
    ],
)
def test_worse_dockerfile_is_found(dockerfile, before, after, sentence):
    assert before in dockerfile
    assert any(sentence in problem for problem in problems(dockerfile.replace(before, after)))


def test_all_that_is_copied_exists_and_is_sent_to_the_builder(dockerfile):
    allowed = {line.strip("!/") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {name for line in re.findall(r"^COPY (?!--)(.*) \S+$", dockerfile, re.M) for name in line.split()}
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)
    packages = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    )
    assert packages <= copied


def test_every_dependency_has_one_version_within_its_bounds(project, constraints):
    wanted = sum((project["optional-dependencies"][extra] for extra in EXTRAS), project["dependencies"])
    for requirement in map(Requirement, wanted):
        if requirement.name != "torch":
            assert constraints[requirement.name] in requirement.specifier, requirement


def test_requirements_of_the_image_are_the_projects(dockerfile, project, tmp_path):
    """Runs the line that reads them."""
    script = re.search(r"RUN python -c '(import tomllib.*?)'", re.sub(r"\\\n", "", dockerfile), re.S)
    assert script is not None
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    done = subprocess.run([sys.executable, "-c", script[1]], cwd=tmp_path, capture_output=True, text=True, check=True)
    names = {Requirement(line).name for line in done.stdout.splitlines()}
    wanted = sum((project["optional-dependencies"][extra] for extra in EXTRAS), project["dependencies"])
    assert names == {Requirement(line).name for line in wanted} - {"torch"}


def test_versions_are_the_same_everywhere(deploy, dockerfile, project, constraints):
    torch = re.search(r"^ARG TORCH=(.*)$", dockerfile, re.M)
    assert torch is not None and f"TORCH  ?= torch=={torch[1]}" in (ROOT / "Makefile").read_text()
    python = re.search(r"^ARG PYTHON=(\d+\.\d+)\.\d+$", dockerfile, re.M)
    assert python is not None and Version(python[1]) in Requirement(f"x{project['requires-python']}").specifier
    cluster = yaml.safe_load((deploy / "kuberay" / "base" / "cluster.yaml").read_text())
    assert cluster["spec"]["rayVersion"] == str(constraints["ray"])
    image = yaml.safe_load((deploy / "ray-cluster.yaml").read_text())["docker"]["image"]
    assert f":{project['version']}-" in image
