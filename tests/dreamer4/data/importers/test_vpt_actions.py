"""Rules R3 to R11 of docs/importing.md, each with what it must not be confused with."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from recordings import line, mouse

from dreamer4.data.importers.vpt_actions import KEYS, Rules, action_row, camera, held_keys, release_stuck_attack
from dreamer4.data.importers.vpt_lines import Tick, parse_tick
from dreamer4.foveation import Foveation, camera_decode, camera_encode

MOUSE = Rules(camera="mouse")


def tick(number: int = 0, **changes) -> Tick:
    return parse_tick(json.dumps(line(number, **changes)).encode(), Path("a.jsonl"), number + 1)


def test_pixels_are_degrees_in_float():
    """R3, R4. Negative control: whole degrees, as the copied loader has them, lose every movement up to 6 pixels."""
    small = [tick(mouse=mouse(dx=dx, dy=-dx)) for dx in (1.0, 2.0, 3.0, 6.0, 20.0)]
    degrees = np.array([camera(now, None, MOUSE) for now in small])
    assert degrees[:, 1] == pytest.approx([0.15, 0.3, 0.45, 0.9, 3.0])
    assert degrees[:, 0] == pytest.approx(-degrees[:, 1])
    wrong = degrees.astype(np.int64)
    assert (wrong[:4] == 0).all()
    assert (camera_encode(degrees)[2:4] != camera_encode(wrong.astype(float))[2:4]).all()


def test_stored_class_is_that_of_the_float_degrees_and_degrees_can_be_stored_instead():
    now = tick(mouse=mouse(dx=11.0, dy=-4.0))
    row = action_row(now, None, MOUSE)
    assert camera_decode(row[-1:].astype(int))[0] == pytest.approx([-0.6154, 1.6095], abs=1e-4)
    degrees = action_row(now, None, Rules(camera="mouse", foveation=None))
    assert degrees[-2:] == pytest.approx([-0.6, 1.65])
    wide = Rules(camera="mouse", foveation=Foveation(30.0, 5.0, 15))
    assert wide.space().parts[1].foveation == Foveation(30.0, 5.0, 15)
    assert action_row(now, None, wide)[-1] != row[-1]


@pytest.mark.parametrize(("version", "scale"), [("5.7", 0.5), ("6.7", 2.0), ("6.9", 2.0), ("6.13", 1.0), ("10.0", 1.0)])
def test_old_recorders_movement_is_scaled_in_guis_only(version, scale):
    """R5. Negative control: the same movement without a GUI is never scaled."""
    rules = replace(MOUSE, version=version)
    inside = camera(tick(mouse=mouse(dx=10.0), isGuiOpen=True), None, rules)
    outside = camera(tick(mouse=mouse(dx=10.0)), None, rules)
    assert inside[1] == pytest.approx(1.5 * scale)
    assert outside[1] == pytest.approx(1.5)


def test_movement_is_what_the_next_tick_shows_of_it():
    """R6. Negative control: the mouse's own report differs, and is used where it is asked for."""
    now, following = tick(0, mouse=mouse(dx=40.0), yaw=179.0, pitch=2.0), tick(1, yaw=-179.0, pitch=1.0)
    assert camera(now, following, Rules()) == pytest.approx([-1.0, 2.0])
    assert camera(now, following, MOUSE) == pytest.approx([0.0, 6.0])
    assert camera(now, None, Rules()) == pytest.approx([0.0, 6.0]), "no next tick: what the mouse says"


def test_movement_in_a_gui_is_the_cursors_and_closing_it_is_no_movement():
    """R6: the cursor jumps to the middle as a GUI closes; the view's angles stand still within one."""
    now = tick(0, isGuiOpen=True, mouse=mouse(scaledX=100.0, scaledY=50.0, dx=7.0))
    moved = tick(1, isGuiOpen=True, mouse=mouse(scaledX=110.0, scaledY=46.0), yaw=90.0)
    closed = tick(1, isGuiOpen=False, mouse=mouse(scaledX=320.0, scaledY=180.0), yaw=90.0)
    assert camera(now, moved, Rules()) == pytest.approx([-0.6, 1.5])
    assert (camera(now, closed, Rules()) == 0).all()
    naive = np.array([180.0 - 50.0, 320.0 - 100.0]) * 0.15
    assert np.abs(naive).min() > 10, "negative control: the jump would be a wild movement"


def test_keys_and_buttons_are_the_23_of_the_game_and_unknown_ones_do_nothing():
    """R7. Negative control: an unknown key is not 'use', which has the number that unknown keys get elsewhere."""
    assert len(KEYS) == len(set(KEYS)) == 23
    known = tick(keys=["key.keyboard.w", "key.keyboard.left.shift"], mouse=mouse(buttons=[0, 2]))
    assert held_keys(known, None) == {"forward", "sneak", "attack", "pickItem"}
    unknown = tick(keys=["key.keyboard.f3", "key.keyboard.unknown", "q"], mouse=mouse(buttons=[3, 4, 7]))
    assert held_keys(unknown, None) == set()
    assert held_keys(tick(mouse=mouse(buttons=[1])), None) == {"use"}


def attacks(lines: list[Tick]) -> list[bool]:
    return ["attack" in held_keys(now, None) for now in release_stuck_attack(lines)]


def test_an_attack_that_the_first_line_begins_is_dropped_until_it_is_pressed_anew():
    """R8. Negative control: one that was held before, or begins later, is kept."""
    held = mouse(buttons=[0])
    stuck = [tick(0, mouse=mouse(buttons=[0], newButtons=[0])), tick(1, mouse=held), tick(2, mouse=None)]
    anew = [tick(3, mouse=mouse(buttons=[0], newButtons=[0])), tick(4, mouse=held)]
    assert attacks(stuck + anew) == [False, False, False, True, True]
    assert attacks([tick(0, mouse=held), tick(1, mouse=held)]) == [True, True]
    assert attacks([tick(0), *anew]) == [False, True, True]
    both = tick(0, mouse=mouse(buttons=[0, 1], newButtons=[0]))
    assert [held_keys(now, None) for now in release_stuck_attack([both])] == [{"use"}]


def test_a_scrolled_hotbar_is_a_press_at_the_tick_before_it_shows():
    """R9. Negative controls: nothing at the first line, whatever slot it has, nor one tick late."""
    lines = [tick(0, hotbar=2), tick(1, hotbar=2), tick(2, hotbar=5), tick(3, hotbar=5)]
    presses = [held_keys(now, following) for now, following in zip(lines, [*lines[1:], None], strict=True)]
    assert presses == [set(), {"hotbar.6"}, set(), set()]
    old = [replace(now, hotbar=None) for now in lines]
    assert all(held_keys(now, following) == set() for now, following in itertools.pairwise(old))


def test_lines_of_old_recorders_without_mouse_or_keyboard_are_no_operation():
    """R10."""
    assert held_keys(tick(mouse=None, keyboard=None), None) == set()
    assert (camera(tick(mouse=None), tick(1, yaw=3.0), Rules()) == 0).all()
    assert held_keys(tick(mouse=None, keys=["key.keyboard.w"]), None) == {"forward"}


def test_escape_in_a_gui_closes_the_inventory():
    """R11. Negative controls: outside of a GUI it stays ESC, and everywhere where BASALT is wanted."""
    escape = ["key.keyboard.escape"]
    assert held_keys(tick(keys=escape, isGuiOpen=True), None) == {"inventory"}
    assert held_keys(tick(keys=escape), None) == {"ESC"}
    assert held_keys(tick(keys=escape, isGuiOpen=True), None, keep_escape=True) == {"ESC"}
