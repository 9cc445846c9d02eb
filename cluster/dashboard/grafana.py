"""Grafana's JSON of the dashboard "Imagination": `python -m cluster.dashboard.grafana FILE` writes it.

The file lies in deploy/monitoring/grafana, and a test says when it differs from what is written here.
"""

import sys
from pathlib import Path
from typing import Any

from cluster.dashboard.panels import ROWS, Panel
from cluster.policy.telemetry import exported
from dreamer4.files import write_json

UID = "dreamer4-imagination"
SOURCE = {"type": "prometheus", "uid": "dreamer4-prometheus"}  # provisioned under this uid
UNITS = {
    "frames/s": "short",
    "count": "short",
    "share": "percentunit",
    "seconds": "s",
    "per second": "ops",
    "bytes": "bytes",
    "price": "short",
    "": "short",
}
WIDTH, HEIGHT, COLUMNS = 8, 8, 24  # of a panel, and of Grafana's grid


def dashboard() -> dict[str, Any]:
    """The whole dashboard."""
    panels, y, number = [], 0, 0
    for row, shown in ROWS.items():
        number += 1
        panels.append(
            {
                "id": number,
                "type": "row",
                "title": row,
                "collapsed": False,
                "panels": [],
                "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
            }
        )
        y += 1
        for place, panel in enumerate(shown):
            number += 1
            per_line = COLUMNS // WIDTH
            x, line = place % per_line * WIDTH, place // per_line * HEIGHT
            panels.append({"id": number, **_panel(panel), "gridPos": {"x": x, "y": y + line, "w": WIDTH, "h": HEIGHT}})
        y += -(-len(shown) // per_line) * HEIGHT
    return {
        "uid": UID,
        "title": "Imagination",
        "description": "Stage 4 of Dreamer 4: how fast, who waits for whom, at what cost. See docs/metrics.md.",
        "tags": ["dreamer4"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,  # one cross hair in all panels
        "refresh": "5s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [],
        "templating": {"list": [_variable("run"), _variable("stage")]},
        "panels": panels,
    }


def _variable(name: str) -> dict[str, Any]:
    query = f"label_values({exported('step')}, {name})"
    return {
        "name": name,
        "label": name,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,  # whenever the time range changes
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "options": [],
        "hide": 0,
        "regex": "",
        "skipUrlSync": False,
    }


def _panel(panel: Panel) -> dict[str, Any]:
    field: dict[str, Any] = {
        "unit": UNITS[panel.unit],
        "min": 0,
        "custom": {"lineWidth": 2, "fillOpacity": 8, "showPoints": "never", "spanNulls": False},
    }
    if panel.most is not None:
        field["max"] = panel.most
    if panel.unit == "":  # may be negative
        del field["min"]
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.text,
        "datasource": SOURCE,
        "targets": [
            {
                "refId": chr(ord("A") + place),
                "datasource": SOURCE,
                "expr": line.query,
                "legendFormat": line.name,
                "range": True,
                "instant": False,
                "editorMode": "code",
            }
            for place, line in enumerate(panel.lines)
        ],
        "fieldConfig": {"defaults": field, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }


if __name__ == "__main__":
    write_json(Path(sys.argv[1]), dashboard())
