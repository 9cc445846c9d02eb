"""Publishing to a folder and taking it back: the same bits, and nothing that isn't safe."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from handmade import add_evaluation
from states import assert_equal
from worlds import walk, write_walks

from actors.evaluator import Evaluator
from cluster.config import configure
from cluster.evaluation import build_policy
from cluster.main import main, open_run
from cluster.models import load_agent, load_policy, load_tokenizer, new_dynamics, new_heads, new_tokenizer
from cluster.presets import smoke
from cluster.reports.results import read_evaluations
from cluster.run import Run
from cluster.settings import override
from dreamer4.data.publish import LISTING, read_listing, receive
from dreamer4.data.validate import validate
from dreamer4.errors import DataError
from dreamer4.files import read_json, write_json
from learners.agent import AgentModel

pytestmark = pytest.mark.usefixtures("interrupts")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with models of every stage, as they are before training, and some evaluations."""
    with Run.open(tmp_path_factory.mktemp("trained") / "run", configure(smoke(), [])) as run:
        pass
    agent = AgentModel(new_dynamics(run), new_heads(run))
    policy = {f"policy.{name}": value for name, value in agent.heads.policy.state_dict().items()}
    run.checkpoints("tokenizer").save(3, new_tokenizer(run).state_dict(), {"x": 1}, run.identity())
    run.checkpoints("dynamics").save(4, new_dynamics(run).state_dict(), {}, run.identity())
    run.checkpoints("agent").save(5, agent.state_dict(), {}, run.identity())
    run.checkpoints("policy").save(6, policy, {}, run.identity())
    add_evaluation(run, "bc", -0.25, 0.125, 50)
    add_evaluation(run, "pmpo", 0.75, None, 150)
    add_evaluation(run, "iql@0.001", 0.5, 0.0625, 100)  # as a further temperature is called
    return run


@pytest.fixture
def published(trained: Run, tmp_path: Path) -> Path:
    assert main(["push", "--run", str(trained.path), "--to", str(tmp_path / "hub"), "--license", "apache-2.0"]) == 0
    return tmp_path / "hub"


def test_pulled_models_are_the_same_and_play_the_same(trained, published, tmp_path, capsys):
    assert main(["pull", "--from", str(published), "--run", str(tmp_path / "pulled")]) == 0
    assert "tokenizer, dynamics, agent, policy" in capsys.readouterr().out
    pulled = Run.attach(tmp_path / "pulled")
    assert pulled.config == trained.config
    for load in (load_tokenizer, load_agent, lambda run: load_policy(run, "pmpo"), lambda run: load_policy(run, "bc")):
        assert_equal(dict(load(pulled).state_dict()), dict(load(trained).state_dict()))
    assert pulled.checkpoints("agent").load(config=pulled.identity()).step == 5
    evaluation = pulled.config.evaluation
    played = [
        Evaluator(run.config.env, 2, evaluation.first_seed, 4).play(build_policy(run, "pmpo"), 0, 2).summary()
        for run in (trained, pulled)
    ]
    assert_equal(played[0], played[1])
    assert main(["pull", "--from", str(published), "--run", str(tmp_path / "pulled")]) == 2
    evaluations = [read_evaluations(run.path) for run in (trained, pulled)]
    assert evaluations[0] == evaluations[1] and list(evaluations[0]) == ["bc", "iql@0.001", "pmpo"]


def test_a_pulled_run_is_known_to_have_no_recordings(published, tmp_path, capsys):
    assert main(["pull", "--from", str(published), "--run", str(tmp_path / "pulled")]) == 0
    assert main(["diagnose", "--run", str(tmp_path / "pulled")]) == 2
    told = capsys.readouterr().err
    assert f"run '{tmp_path / 'pulled'}' has no recordings" in told and "a pulled run has models only" in told


def test_places_stay_with_the_publisher(tmp_path):
    """And settings of how it runs need no recordings, which are not published."""
    places = ["data.source=/home/me/set", "resources.storage=s3://mine/run", "data.weights=[1,1]"]
    config = override(configure(smoke(), []), [*places, 'data.mixture=["s3://key:secret@mine/films/?token=secret"]'])
    with Run.open(tmp_path / "run", config) as run:
        run.checkpoints("tokenizer").save(3, new_tokenizer(run).state_dict(), {}, run.identity())
    assert main(["push", "--run", str(run.path), "--to", str(tmp_path / "hub"), "--license", "mit"]) == 0
    for file in (file for file in (tmp_path / "hub").rglob("*") if file.suffix in (".json", ".md")):
        assert not [word for word in ("/home", "mine", "key:", "secret", str(tmp_path)) if word in file.read_text()]
    assert main(["pull", "--from", str(tmp_path / "hub"), "--run", str(tmp_path / "pulled")]) == 0
    with open_run(tmp_path / "pulled", ["evaluation.actors=3"]) as pulled:
        assert (pulled.config.data.source, pulled.config.data.mixture) == ("set", ("films",))
        assert (pulled.config.resources.storage, pulled.config.evaluation.actors) == (None, 3)
        assert pulled.checkpoints("tokenizer").load(config=pulled.identity()).step == 3


def test_card_tells_what_the_report_tells(trained, published):
    _, head, text = (published / "README.md").read_text().split("---\n", 2)
    found = yaml.safe_load(head)
    assert found["license"] == "apache-2.0" and trained.config.env in found["tags"]
    metrics = {m["name"]: m["value"] for result in found["model-index"][0]["results"] for m in result["metrics"]}
    assert metrics["mean return of PMPO"] == 0.75 and metrics["success of BC"] == 0.25
    assert "| PMPO | 200 | 0.750 | – | 75.0 % |" in text and "| BC | 200 | -0.250 | 0.125 | 25.0 % |" in text
    assert "| tokenizer | 3 |" in text


def test_nothing_but_tensors_text_and_json_is_published(published):
    names = {str(path.relative_to(published)) for path in published.rglob("*") if path.is_file()}
    assert names == {*read_listing(published), LISTING, ".gitattributes"}
    assert {Path(name).suffix for name in read_listing(published)} == {".json", ".md", ".safetensors"}
    assert "state.safetensors" not in " ".join(names)


@pytest.mark.parametrize(
    "name",
    [
        "../x.json",
        "/etc/x.json",
        "a/../../x.json",
        "weights.pkl",
        "x.pt",
        ".x.json",
        "a\\b.json",
        "~/x.json",
        "a//b.json",
        "@x.json",
        "a/@x.json",
        "@/x.json",
        "x@.pkl",
        "user@host:x.json",
        "a@b.json\n",
    ],
)
def test_unsafe_names_are_refused_before_anything_is_copied(published, tmp_path, name):
    listing = read_json(published / LISTING)
    listing["files"] = {name: {"bytes": 0, "sha256": ""}, **listing["files"]}
    write_json(published / LISTING, listing)
    with pytest.raises(DataError, match="may not be published or taken"):
        receive(published, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", ["bit", "cut", "missing", "link", "folder link"])
def test_changed_files_are_refused(published, tmp_path, change, capsys):
    file = published / "tokenizer" / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    if change == "bit":
        file.write_bytes(content)
    elif change == "cut":
        file.write_bytes(content[:-1])
    elif change == "missing":
        file.unlink()
    elif change == "link":
        shutil.move(file, tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
    else:
        shutil.move(file.parent, tmp_path / "elsewhere")
        file.parent.symlink_to(tmp_path / "elsewhere")
    assert main(["pull", "--from", str(published), "--run", str(tmp_path / "pulled")]) == 2
    assert "tokenizer" in capsys.readouterr().err
    assert not (tmp_path / "pulled").exists()


def test_dataset_makes_the_round_trip(tmp_path, capsys):
    dataset = write_walks(tmp_path / "data", [walk(number) for number in range(8)])
    arguments = ["data", "push", "--data", str(tmp_path / "data"), "--to", str(tmp_path / "hub")]
    assert main(arguments) == 0 and main(arguments) == 0  # again: replaced
    assert main(["data", "pull", "--from", str(tmp_path / "hub"), "--out", str(tmp_path / "out")]) == 0
    assert "8 episodes" in capsys.readouterr().out
    assert validate(tmp_path / "out", ["duplicate"]).faults == []
    for shard in dataset.manifest.shards:
        assert (tmp_path / "out" / shard.file).read_bytes() == (tmp_path / "data" / shard.file).read_bytes()
    assert main(["data", "pull", "--from", str(tmp_path / "hub"), "--out", str(tmp_path / "out")]) == 2
    assert main(["data", "pull", "--from", str(tmp_path / "data"), "--out", str(tmp_path / "other")]) == 2
    assert main([*arguments[:-1], str(tmp_path / "data")]) == 2  # not over something else
    assert "holds something else" in capsys.readouterr().err


def test_published_dataset_is_read_by_hugging_face_datasets(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    walks = [walk(number) for number in range(8)]
    write_walks(tmp_path / "data", walks)
    assert main(["data", "push", "--data", str(tmp_path / "data"), "--to", str(tmp_path / "hub")]) == 0
    loaded = datasets.load_dataset(str(tmp_path / "hub"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == sum(one.length for one in walks)
    assert np.array_equal(loaded["reward"], np.concatenate([one.reward_T for one in walks]))


def test_validate_and_inspect_on_the_command_line(tmp_path, capsys):
    dataset = write_walks(tmp_path / "data", [walk(number) for number in range(8)])
    data = ["--data", str(tmp_path / "data")]
    assert main(["data", "validate", *data]) == 0
    assert main(["data", "inspect", *data, "--json", str(tmp_path / "numbers.json")]) == 0
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["episodes"] == 8 and numbers["frames"] == dataset.frame_count
    assert sum(numbers["actions"]["action"].values()) == pytest.approx(1)
    assert (tmp_path / "data" / "sheet.png").read_bytes()[:4] == b"\x89PNG"
    shard = tmp_path / "data" / dataset.manifest.shards[-1].file
    shard.write_bytes(shard.read_bytes()[:-3000])
    with pytest.raises(SystemExit) as end:
        main(["data", "validate", *data, "--quarantine", "--json", str(tmp_path / "found.json")])
    assert end.value.code == 1
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["faults"][0]["file"] == shard.name and Path(found["quarantine"]).is_dir()
    assert main(["data", "validate", *data]) == 0
    assert main(["data", "validate", *data, "--allow", "nonsense"]) == 2
    capsys.readouterr()
