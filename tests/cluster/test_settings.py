import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from cluster.presets import laptop
from cluster.settings import Difference, differences, from_json, override, to_json
from dreamer4.errors import ConfigError


@dataclass(frozen=True)
class Engine:
    power: float = 1.5
    cylinders: int = 4
    turbo: bool = False
    limit: float | None = None
    fuel: Literal["petrol", "diesel"] = "petrol"
    order: tuple[int, int, int, int] | None = None

    def __post_init__(self) -> None:
        if self.turbo and self.cylinders < 4:
            raise ConfigError("a turbo needs at least 4 cylinders")


@dataclass(frozen=True)
class Car:
    name: str
    seats: int = 5
    size: tuple[float, float, float] = (4.0, 2.0, 1.5)
    colours: tuple[str, ...] = ()
    parts: Sequence[dict[str, Any]] = field(default_factory=tuple)
    note: str | None = None
    engine: Engine = field(default_factory=Engine)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))


CAR = Car("red one", colours=("red",), parts=({"door": 4},), engine=Engine(limit=3.0, fuel="diesel"))


def test_json_round_trip_is_exact():
    assert from_json(Car, json.loads(json.dumps(to_json(CAR)))) == CAR


def test_keys_that_are_left_out_take_their_defaults():
    assert from_json(Car, {"name": "x", "engine": {"power": 2}}) == Car("x", engine=Engine(power=2.0))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"name": "x", "seat": 4}, ["'seat'", "did you mean 'seats'?"]),
        ({"name": "x", "engine": {"powr": 1}}, ["'engine.powr'", "did you mean 'engine.power'?"]),
        ({"name": "x", "engine": {"zzz": 1}}, ["'engine.zzz'", "known in engine: power, cylinders"]),
        ({"name": "x", "cylinder": 3}, ["'cylinder'", "did you mean 'engine.cylinders'?"]),
        ({"seats": 4}, ["'name' is missing"]),
        ({"name": 3}, ["name", "a text", "3"]),
        ({"name": "x", "seats": 4.5}, ["seats", "a whole number", "4.5"]),
        ({"name": "x", "seats": True}, ["seats", "a whole number", "True"]),
        ({"name": "x", "engine": {"power": "much"}}, ["engine.power", "a finite number", "'much'"]),
        ({"name": "x", "engine": {"power": float("nan")}}, ["engine.power", "a finite number", "nan"]),
        ({"name": "x", "engine": {"turbo": 1}}, ["engine.turbo", "true or false", "1"]),
        ({"name": "x", "engine": {"limit": "none"}}, ["engine.limit", "a finite number or none", "'none'"]),
        ({"name": "x", "engine": {"fuel": "coal"}}, ["engine.fuel", "'petrol', 'diesel'", "'coal'"]),
        ({"name": "x", "engine": 3}, ["engine", "an object", "3"]),
        ({"name": "x", "size": [1, 2]}, ["size", "a list of 3 float", "[1, 2]"]),
        ({"name": "x", "size": [1, 2, "x"]}, ["size[2]", "a finite number", "'x'"]),
        ({"name": "x", "colours": "red"}, ["colours", "a list of str", "'red'"]),
        ({"name": "x", "parts": [3]}, ["parts[0]", "an object", "3"]),
        ({"name": "x", "engine": {"turbo": True, "cylinders": 3}}, ["at least 4 cylinders"]),
        ([], ["the configuration", "[]"]),
    ],
)
def test_mistakes_are_told_with_key_value_and_what_is_expected(value, words):
    with pytest.raises(ConfigError) as caught:
        from_json(Car, value)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


def test_whole_numbers_become_floats_where_floats_are_wanted():
    power = from_json(Car, {"name": "x", "engine": {"power": 2}}).engine.power
    assert isinstance(power, float)


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("seats=7", Car("x", seats=7)),
        ("seats=7_000", Car("x", seats=7000)),
        ("name=7", Car("7")),
        ("name=a=b", Car("a=b")),
        ("note=hello", Car("x", note="hello")),
        ("note=none", Car("x")),
        ("engine.power=2e-3", Car("x", engine=Engine(power=0.002))),
        ("engine.power=2", Car("x", engine=Engine(power=2.0))),
        ("engine.turbo=true", Car("x", engine=Engine(turbo=True))),
        ("engine.turbo=False", Car("x", engine=Engine())),
        ("engine.limit=None", Car("x", engine=Engine())),
        ("engine.limit=3", Car("x", engine=Engine(limit=3.0))),
        ("engine.fuel=diesel", Car("x", engine=Engine(fuel="diesel"))),
        ("size=[1,2,3.5]", Car("x", size=(1.0, 2.0, 3.5))),
        ('colours=["red", "blue"]', Car("x", colours=("red", "blue"))),
        ("colours=[]", Car("x")),
        ('parts=[{"door": 2}]', Car("x", parts=({"door": 2},))),
    ],
)
def test_override_parses_by_type(assignment, expected):
    assert override(Car("x"), [assignment]) == expected


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("seats", ["'seats' is not KEY=VALUE"]),
        ("seats=many", ["seats", "a whole number", "'many'"]),
        ("seats=1.5", ["seats", "a whole number", "'1.5'"]),
        ("engine.power=", ["engine.power", "a finite number", "''"]),
        ("engine.power=inf", ["engine.power", "a finite number", "inf"]),
        ("engine.turbo=1", ["engine.turbo", "true or false", "'1'"]),
        ("engine.fuel=coal", ["engine.fuel", "'diesel'", "'coal'"]),
        ("size=4,2,1", ["size", "a list of 3 float", "such as size='[0.5, 1.5, 2.5]'", "'4,2,1'"]),
        ("colours=red", ["colours", "a list of str", """such as colours='["a", "b"]'""", "'red'"]),
        (
            "engine.order=1,3",
            ["engine.order", "a list of 4 int", "such as engine.order='[1, 2, 3, 4]' or none", "'1,3'"],
        ),
        ("engine=4", ["'engine' is a section", "power, cylinders"]),
        ("engin.power=4", ["'engin.power'", "did you mean 'engine.power'?"]),
        ("engine.power.much=4", ["'engine.power.much'", "did you mean 'engine.power'?"]),
        ("power=4", ["'power'", "did you mean 'engine.power'?"]),
    ],
)
def test_override_explains_mistakes(assignment, words):
    with pytest.raises(ConfigError) as caught:
        override(Car("x"), [assignment])
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("key", ["size", "colours", "engine.order"])
def test_example_of_a_list_can_be_copied_into_a_shell(key):
    with pytest.raises(ConfigError) as caught:
        override(Car("x"), [f"{key}=nonsense"])
    (example,) = re.findall(rf"such as ({key}='.*?')", str(caught.value))
    (assignment,) = shlex.split(example)
    assert override(Car("x"), [assignment]) != Car("x")


def test_every_list_of_a_run_has_an_example():
    lists = [key for key, value in leaves(to_json(laptop())) if isinstance(value, list) and key != "dynamics.actions"]
    assert {"controls", "tokenizer.frame", "data.weights"} <= set(lists)
    for key in lists:
        with pytest.raises(ConfigError, match=f"such as {key}='"):
            override(laptop(), [f"{key}=nonsense"])


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def test_coupled_keys_change_together_in_any_order():
    small = Car("x", engine=Engine(cylinders=3))
    expected = Car("x", engine=Engine(cylinders=6, turbo=True))
    assert override(small, ["engine.turbo=true", "engine.cylinders=6"]) == expected
    assert override(small, ["engine.cylinders=6", "engine.turbo=true"]) == expected
    with pytest.raises(ConfigError, match="at least 4"):
        override(small, ["engine.turbo=true"])


def test_override_leaves_the_original_and_takes_the_last_of_two():
    assert override(CAR, ["seats=2", "seats=3"]).seats == 3
    assert CAR.seats == 5


def test_differences_are_dotted_keys_with_both_values():
    other = override(CAR, ["engine.limit=none", 'colours=["red","blue"]'])
    assert differences(CAR, other) == [
        Difference("colours", ["red"], ["red", "blue"]),
        Difference("engine.limit", 3.0, None),
    ]
    assert differences(CAR, CAR) == []
