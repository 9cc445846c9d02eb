"""`dreamer4 bench loop`: what is refused, before a Ray is started."""

import pytest

from cluster.bench import command
from cluster.main import main

pytestmark = pytest.mark.usefixtures("interrupts")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--most-workers", "0"], "--most-workers (0) at least 1"),
        (["--minutes", "-1"], "--minutes (-1) must be finite and at least 0"),
        (["--minutes", "nan"], "--minutes (nan) must be finite"),
        (["--minutes", "inf"], "--minutes (inf) must be finite"),
    ],
)
def test_impossible_options_are_named(options, message, capsys, monkeypatch):
    monkeypatch.setattr(command, "ray_session", lambda config: pytest.fail("a Ray was started"))
    assert main(["bench", "loop", *options]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
