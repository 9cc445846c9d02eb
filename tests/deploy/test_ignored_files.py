"""What scripts put into the repository and nobody may have: neither jobs nor commits take it along."""

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import create_package

ROOT = Path(__file__).parents[2]
LISTS = (".gitignore", ".rayignore")
SECRETS = {  # what a script says, and what it makes then
    "deploy/slurm.sh": ('"$here/.slurm-${SLURM_JOB_ID}.XXXX"', ".slurm-4711.aB0c/token"),
    "deploy/local-cluster.sh": ("state=$PWD/.dreamer4-cluster", ".dreamer4-cluster/env"),
}
RESULTS = "gpu-results/gpu.csv"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """With our lists of what is left out, and what scripts leave that were called in it or in a folder of it."""
    folder = tmp_path / "repository"
    for place in (folder, folder / "deploy"):
        for name in ("code.py", *(made for _, made in SECRETS.values())):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).touch()
    (folder / RESULTS).parent.mkdir()
    (folder / RESULTS).touch()
    for name in LISTS:
        shutil.copy(ROOT / name, folder)
    return folder


OURS = {*LISTS, "code.py", "deploy/code.py"}


@pytest.mark.parametrize("script", SECRETS)
def test_scripts_make_what_is_tested_here(script):
    assert SECRETS[script][0] in (ROOT / script).read_text()


@pytest.mark.parametrize(("gitignore", "shipped"), [(True, OURS), (False, {*OURS, RESULTS})])
def test_tokens_are_not_shipped_with_a_job(repository, tmp_path, gitignore, shipped):
    """By what Ray itself would pack; its users may have it look at `.rayignore` alone."""
    package = tmp_path / "package.zip"
    create_package(str(repository), package, include_gitignore=gitignore, excludes=[])
    with zipfile.ZipFile(package) as file:
        assert {name for name in file.namelist() if not name.endswith("/")} == shipped


def test_tokens_are_not_committed(repository):
    subprocess.run(["git", "init", "--quiet", repository], check=True)
    command = ["git", "-C", repository, "ls-files", "--others", "--exclude-standard"]
    assert set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()) == OURS
