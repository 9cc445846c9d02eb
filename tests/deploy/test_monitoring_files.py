"""Grafana's dashboard, Prometheus's configuration and alerts, and what is written about them: all say the same."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.dashboard.grafana import SOURCE, UID, dashboard
from cluster.dashboard.panels import LEARNER, ROWS
from cluster.dashboard.prometheus import Grafana, configuration, grafana_program
from cluster.policy.autoscale import STARVING
from cluster.policy.telemetry import METRICS, TAGS, exported
from cluster.utilisation import TIMED
from dreamer4.errors import RunError

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
RULES = MONITORING / "rules.yml"
OPERATIONS = ROOT / "docs" / "operations.md"
OURS = re.compile(r"ray_dreamer_\w+")


@pytest.fixture(scope="module")
def shown() -> dict[str, Any]:
    return json.loads((MONITORING / "grafana" / "dashboards" / "imagination.json").read_text())


@pytest.fixture(scope="module")
def alerts() -> dict[str, dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def charts(shown: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return (panel for panel in shown["panels"] if panel["type"] != "row")


# Grafana


def test_dashboard_is_what_the_panels_say(shown):
    assert shown == dashboard(), "write it again: python -m cluster.dashboard.grafana FILE"


def test_panels_have_numbers_of_their_own_and_do_not_overlap(shown):
    assert len({panel["id"] for panel in shown["panels"]}) == len(shown["panels"])
    cells = [
        (x, y)
        for panel in shown["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24


def test_every_target_asks_the_provisioned_source_within_the_chosen_run(shown):
    provisioned = yaml.safe_load((MONITORING / "grafana/provisioning/datasources/prometheus.yaml").read_text())
    (source,) = provisioned["datasources"]
    assert (source["uid"], source["type"]) == (SOURCE["uid"], SOURCE["type"])
    for panel in charts(shown):
        assert panel["description"] and panel["datasource"] == SOURCE
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
        for target in panel["targets"]:
            assert target["datasource"] == SOURCE and target["expr"] and target["legendFormat"]
            for name in OURS.findall(target["expr"]):
                assert f'{name}{{run=~"$run",stage=~"$stage"' in target["expr"]


def test_variables_are_labels_of_our_metrics(shown):
    variables = {variable["name"]: variable for variable in shown["templating"]["list"]}
    assert tuple(variables) == TAGS
    for name, variable in variables.items():
        assert variable["definition"] == f"label_values({exported('step')}, {name})"
        assert variable["datasource"] == SOURCE and variable["includeAll"] and variable["allValue"] == ".*"


def test_provider_reads_the_folder_that_is_named_in_the_environment():
    provided = yaml.safe_load((MONITORING / "grafana/provisioning/dashboards/imagination.yaml").read_text())
    (provider,) = provided["providers"]
    assert provider["type"] == "file" and provider["options"]["path"] == "${DREAMER4_DASHBOARDS}"


FAKE_GRAFANA = """#!/bin/sh
env | sort > "$GF_PATHS_DATA.env"; echo "$@" > "$GF_PATHS_DATA.arguments"
exec python3 -c "
import os
from http.server import BaseHTTPRequestHandler, HTTPServer
class Healthy(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == '/api/health' else 404); self.end_headers()
HTTPServer((os.environ['GF_SERVER_HTTP_ADDR'], int(os.environ['GF_SERVER_HTTP_PORT'])), Healthy).serve_forever()"
"""


def test_grafana_is_started_on_loopback_without_a_login_where_it_is_installed(tmp_path, monkeypatch):
    """A stand-in for Grafana, which is not to be had from Debian: it notes how it is started."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    if shutil.which("grafana-server") is None and shutil.which("grafana") is None:
        assert grafana_program() is None
    (programs / "grafana-server").write_text(FAKE_GRAFANA)
    (programs / "grafana-server").chmod(0o755)
    program = grafana_program()
    assert program == [str(programs / "grafana-server")]
    grafana = Grafana(tmp_path, program, "http://127.0.0.1:9090")
    grafana.close()
    environment = dict(
        line.split("=", 1) for line in (tmp_path / "grafana.env").read_text().splitlines() if "=" in line
    )
    assert grafana.url == f"http://127.0.0.1:{environment['GF_SERVER_HTTP_PORT']}/d/{UID}"
    assert environment["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer" and environment["GF_AUTH_BASIC_ENABLED"] == "false"
    assert environment["DREAMER4_PROMETHEUS_URL"] == "http://127.0.0.1:9090"
    for name in ("DREAMER4_DASHBOARDS", "GF_PATHS_PROVISIONING"):
        assert Path(environment[name]).is_dir()
    assert "--homepath" in (tmp_path / "grafana.arguments").read_text()


def test_grafana_that_does_not_start_is_told_with_its_last_words(tmp_path):
    program = tmp_path / "grafana-server"
    program.write_text("#!/bin/sh\necho no home here\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(RunError, match="grafana did not start: no home here"):
        Grafana(tmp_path, [str(program)], "http://127.0.0.1:9090")


# Prometheus


def promtool(*words: str, folder: Path = MONITORING) -> str:
    """Its output; without it tests fail, lest anybody takes them for passed; DREAMER4_NO_PROMETHEUS=1 skips."""
    if os.environ.get("DREAMER4_NO_PROMETHEUS") == "1":
        pytest.skip("DREAMER4_NO_PROMETHEUS=1")
    if shutil.which("promtool") is None:
        pytest.fail("promtool is not on PATH: `apt-get install prometheus`, or set DREAMER4_NO_PROMETHEUS=1", False)
    done = subprocess.run(["promtool", *words], cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        raise RunError(done.stdout + done.stderr)
    return done.stdout


def test_configuration_and_rules_are_valid():
    assert "SUCCESS" in promtool("check", "config", "prometheus.yml")
    assert f"{len(yaml.safe_load(RULES.read_text())['groups'][0]['rules'])} rules found" in promtool(
        "check", "rules", "rules.yml"
    )


def test_configuration_that_the_dashboard_writes_is_valid_and_shows_the_token(tmp_path):
    (tmp_path / "token").write_text("secret")
    written = configuration("http://127.0.0.1:8265", tmp_path / "token")
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(written))
    assert "SUCCESS" in promtool("check", "config", "prometheus.yml", folder=tmp_path)
    assert "secret" not in (tmp_path / "prometheus.yml").read_text()
    shipped = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    for config in (written, shipped):
        (job,) = config["scrape_configs"]
        (discovery,) = job["http_sd_configs"]
        assert job["job_name"] == "ray" and discovery["url"] == "http://127.0.0.1:8265/api/prometheus/sd"
        assert discovery["authorization"]["credentials_file"].startswith("/")


def test_alerts_fire_when_they_should_and_only_then():
    assert "SUCCESS" in promtool("test", "rules", "rules_test.yml")


def test_rule_that_never_fires_fails_its_test(tmp_path):
    """What the tests of the rules are worth: they notice a threshold that is far off."""
    (tmp_path / "rules_test.yml").write_text((MONITORING / "rules_test.yml").read_text())
    spoilt = RULES.read_text().replace("> 0.5", "> 5")
    assert spoilt != RULES.read_text()
    (tmp_path / "rules.yml").write_text(spoilt)
    with pytest.raises(RunError, match="LearnerStarved"):
        promtool("test", "rules", "rules_test.yml", folder=tmp_path)


def test_every_alert_is_tested_both_ways(alerts):
    tests = yaml.safe_load((MONITORING / "rules_test.yml").read_text())["tests"]
    expected = [(one["alertname"], bool(one.get("exp_alerts"))) for test in tests for one in test["alert_rule_test"]]
    for name in alerts:
        assert (name, True) in expected and (name, False) in expected, name


# what they say of each other


def test_metrics_of_dashboard_and_alerts_are_those_of_the_code(shown, alerts):
    known = {exported(key) for key in METRICS}
    used = set(OURS.findall(json.dumps(shown))) | set(OURS.findall(RULES.read_text()))
    assert used <= known
    # A number that nobody looks at need not be exported.
    assert known - used == {exported("imagined_frames")}


def test_documented_metrics_are_those_of_the_code_with_their_units():
    text = (ROOT / "docs" / "metrics.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")
    ]
    ours = {row[0].strip("`"): row for row in rows if len(row) == 4 and not row[0].startswith("`ray_")}
    assert {key: (row[1], row[2].strip("`")) for key, row in ours.items()} == {
        key: (metric.unit, exported(key)) for key, metric in METRICS.items()
    }
    assert [row[0].strip("`") for row in rows if len(row) == 3 and not row[0].startswith("`ray_")] == list(TIMED)
    of_ray = {name for row in rows if row[0].startswith("`ray_") for name in re.findall(r"ray_\w+", row[0])}
    asked = {
        name
        for panels in ROWS.values()
        for panel in panels
        for line in panel.lines
        for name in re.findall(r"\bray_\w+", line.query)
        if not name.startswith("ray_dreamer")
    }
    assert of_ray == asked
    for name in LEARNER:
        assert f"`{name}`" in text


def test_every_panel_and_alert_is_explained(shown, alerts):
    metrics, operations = (ROOT / "docs" / "metrics.md").read_text(), OPERATIONS.read_text()
    for row in ROWS:
        assert f"### {row}" in metrics
    headings = set(re.findall(r"^#### (\w+)$", operations, re.M))
    assert headings == set(alerts)
    for name, rule in alerts.items():
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{name.lower()}"
        assert rule["annotations"]["summary"] and rule["labels"]["severity"] in ("warning", "critical")


def test_starved_learner_is_told_of_after_the_controller_had_its_chance(alerts):
    limit = float(re.search(r"> ([\d.]+)", alerts["LearnerStarved"]["expr"])[1])
    assert limit > STARVING
