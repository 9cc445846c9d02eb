"""Ray's own autoscaler brings nodes for the workers that the loop asks for, and takes them away again."""

import pytest

from benchmarks.autoscaling import BASE_NODES, MOST, tell_story

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def test_workers_bring_nodes_throughput_rises_and_idle_workers_and_nodes_go(tmp_path):
    story = tell_story(tmp_path)
    rows = story.rows
    assert rows[0]["nodes"] == BASE_NODES, "nothing was there beforehand"
    assert any(row["workers_pending"] > 0 for row in rows), "workers waited for a node"
    assert max(row["workers_ready"] for row in rows) == MOST
    assert max(row["nodes"] for row in rows) == BASE_NODES + MOST - 1
    assert max(story.at(MOST)) > 1.5 * max(story.at(1))
    wanted = [event["wanted"] for event in story.events if event["event"] == "resize"]
    top = wanted.index(MOST)
    assert wanted[: top + 1] == sorted(wanted[: top + 1]), "it grew while the learner starved"
    assert wanted[top:] == sorted(wanted[top:], reverse=True) and wanted[-1] < MOST, "and shrank while workers idled"
    assert not any(event["event"] == "lost" for event in story.events), "drained, not killed"
    assert min(row["nodes"] for row in rows[-3:-1]) < BASE_NODES + MOST - 1, "nodes went in mid-run"
    assert story.nodes_at_the_end == BASE_NODES
