import json

import numpy as np
import pytest
from states import assert_equal

from actors.inspection import load_inspection, save_inspection
from dreamer4.errors import RunError

FOUND = {
    "plain": {"n": 3, "psnr": 20.5, "name": "walk"},
    "deep": {"er": {"picture": np.arange(12, dtype=np.uint8).reshape(2, 2, 3), "curve": np.array([1.5, 2.5])}},
    "empty": {},
}


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def test_what_is_saved_is_loaded(tmp_path):
    save_inspection(tmp_path / "inspection", FOUND)
    loaded = load_inspection(tmp_path / "inspection")
    assert_equal(FOUND, loaded)
    assert loaded["deep"]["er"]["picture"].dtype == np.uint8


def test_curves_can_be_read_in_the_json(tmp_path):
    save_inspection(tmp_path, FOUND)
    text = (tmp_path / "inspection.json").read_text()
    assert json.loads(text)["deep"]["er"]["curve"]["values"] == [1.5, 2.5]


def test_numbers_that_json_does_not_have_become_null(tmp_path):
    save_inspection(tmp_path, {"a": float("inf"), "b": np.float64("nan"), "c": np.array([np.nan, 1]), "d": np.int64(4)})
    json.loads((tmp_path / "inspection.json").read_text(), parse_constant=refuse)
    loaded = load_inspection(tmp_path)
    assert loaded["a"] is None and loaded["b"] is None and loaded["d"] == 4
    assert np.isnan(loaded["c"][0])


@pytest.mark.parametrize("damage", ["missing", "truncated", "pickled", "other"])
def test_damaged_arrays_are_named(tmp_path, damage):
    save_inspection(tmp_path, FOUND)
    file = tmp_path / "arrays.npz"
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:50])
    elif damage == "pickled":  # would run code of whoever wrote it
        pickled = np.array([{}], dtype=object)
        np.savez(file, **{"deep/er/picture": pickled, "deep/er/curve": pickled})
    else:
        np.savez(file, something=np.zeros(1))
    with pytest.raises(RunError, match=r"arrays\.npz'.*run the inspection again"):
        load_inspection(tmp_path)


def test_missing_inspection_is_named(tmp_path):
    with pytest.raises(RunError, match=r"inspection\.json"):
        load_inspection(tmp_path)
