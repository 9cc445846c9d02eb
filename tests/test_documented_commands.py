"""Commands in the documentation are given to what reads them, so that a key that is gone, or a combination that can't
work, is noticed. Left out are commands without a setting or a preset, and docs/log.md, which tells of the past.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.config import RunConfig, configure
from cluster.data import recorded
from cluster.main import build_parser, read_settings
from cluster.presets import preset
from cluster.submit import absolute
from dreamer4.data.schema import Recording
from dreamer4.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted({ROOT / "README.md", ROOT / "deploy/README.md", *ROOT.glob("docs/*.md")} - {ROOT / "docs/log.md"})
CODE = re.compile(r"^```\w*\n(.*?)^```|`([^`]+)`", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:^\s*|-- )((?:dreamer4|deploy/runs/\w+\.sh) .*)")
SETTING = re.compile(r"--preset|(--)?\w+(\.\w+)*=.*", re.DOTALL)


def commands(text: str) -> Iterator[str]:
    """Commands of ours with a setting or a preset, in blocks and in lines; a shell's variables become a number."""
    for block, inline in CODE.findall(text):
        for line in (block.replace("\\\n", " ") or inline.replace("\n", " ")).splitlines():
            if found := COMMAND.search(re.sub(r"\$\w+", "1", line)):
                words = shlex.split(found[1], comments=True)
                if any(SETTING.fullmatch(word) for word in words):
                    yield shlex.join(words)


def check(command: str, monkeypatch: pytest.MonkeyPatch) -> RunConfig | None:
    """The config that a command makes, of a new run, with recordings of the preset's sizes wherever it names some."""
    program, *words = shlex.split(command)
    if program != "dreamer4":  # a recipe: its first stage has all settings
        words = ["data", "collect", "--preset", Path(program).stem, "--run", *words]
    options, rest = build_parser().parse_known_args(words)
    if options.verb == "submit":
        return check(shlex.join(["dreamer4", *absolute(options.command, ROOT)]), monkeypatch)
    if not options.takes_settings:
        return None
    base = preset(getattr(options, "preset", None) or "laptop")
    recording = Recording(base.env, base.tokenizer.frame, base.dynamics.space, tuple("abc"))
    monkeypatch.setattr(recorded, "_recording", lambda place: recording)
    return configure(base, read_settings(rest))


FOUND = [(path.relative_to(ROOT).as_posix(), command) for path in DOCUMENTS for command in commands(path.read_text())]


@pytest.mark.parametrize(("document", "command"), FOUND)
def test_documented_command_can_be_given(monkeypatch, document, command):
    check(command, monkeypatch)


def test_commands_are_found_where_they_are():
    documents = {"README.md", "deploy/README.md", "docs/importing.md", "docs/operations.md", "docs/perceptual.md"}
    assert documents <= {document for document, _ in FOUND}
    text = """`dreamer4 runs`, or `dreamer4 train policy
--run r seed=3`:
```
kubectl -n dreamer4 get --preset=no
for x in 1; do
  dreamer4 encode a.b=$x \\
      c=2  # this
```
"""
    assert list(commands(text)) == ["dreamer4 train policy --run r seed=3", "dreamer4 encode a.b=1 c=2"]


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("dreamer4 quickstart dynamics.widht=3", "did you mean 'dynamics.width'"),
        ("dreamer4 train tokenizer --run r --preset minecraft seed=1", "unknown environment 'minecraft'"),
        ("dreamer4 quickstart --preset minecraft data.source=/d", "no perceptual network is given"),
        ("deploy/runs/minecraft.sh /r data.source=/d", "no perceptual network is given"),
        ("dreamer4 submit -- train policy --run /r resources.workers=4 resources.max_workers=3", "must lie between"),
    ],
)
def test_worse_command_is_found(monkeypatch, command, sentence):
    with pytest.raises(ConfigError, match=sentence):
        check(command, monkeypatch)
