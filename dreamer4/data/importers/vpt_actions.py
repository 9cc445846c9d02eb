"""What a VPT player did at a tick, as one row of the action space: 23 keys and buttons, and the mouse.

The rules R3 to R11 of docs/importing.md, which also says where the commonly copied loader departs from them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from dreamer4.actions import ActionSpace, Part
from dreamer4.data.importers.vpt_lines import Tick
from dreamer4.foveation import VPT, Foveation, camera_encode

HOTBAR = tuple(f"hotbar.{slot}" for slot in range(1, 10))
KEYS = (
    *("ESC", "attack", "back", "drop", "forward", *HOTBAR, "inventory", "jump", "left", "pickItem", "right"),
    *("sneak", "sprint", "swapHands", "use"),
)
KEYBOARD = {
    "key.keyboard.escape": "ESC",
    "key.keyboard.s": "back",
    "key.keyboard.q": "drop",
    "key.keyboard.w": "forward",
    **{f"key.keyboard.{slot}": f"hotbar.{slot}" for slot in range(1, 10)},
    "key.keyboard.e": "inventory",
    "key.keyboard.space": "jump",
    "key.keyboard.a": "left",
    "key.keyboard.d": "right",
    "key.keyboard.left.shift": "sneak",
    "key.keyboard.left.control": "sprint",
    "key.keyboard.f": "swapHands",
}
BUTTONS = {0: "attack", 1: "use", 2: "pickItem"}
ATTACK = 0
DEGREES_PER_PIXEL = 360 / 2400
# What old recorders forgot to divide GUI movement by, or divided twice (R5); later ones and unknown ones: 1.
GUI_SCALE = {"5.7": 0.5, "5.8": 0.5, "6.7": 2.0, "6.8": 2.0, "6.9": 2.0}


@dataclass(frozen=True)
class Rules:
    """The choices that a user has.

    Attributes:
        version: of the recorder, such as "6.9"; matters for `camera="mouse"` only.
        camera: "state" takes movement from the view's angles and the cursor's position at the next tick, "mouse" from
            what the mouse reported.
        foveation: bins of the mouse; None stores pitch and yaw in degrees as a continuous part.
        keep_escape: ESC within a GUI stays ESC, as BASALT wants it, and doesn't become `inventory`.
    """

    version: str = ""
    camera: Literal["state", "mouse"] = "state"
    foveation: Foveation | None = field(default=VPT)
    keep_escape: bool = False

    def space(self) -> ActionSpace:
        keyboard = Part("keyboard", "binary", len(KEYS))
        if self.foveation is None:
            return ActionSpace((keyboard, Part("mouse", "continuous", 2)))
        return ActionSpace((keyboard, Part("mouse", "categorical", self.foveation.classes, self.foveation)))


def release_stuck_attack(ticks: Iterable[Tick]) -> Iterator[Tick]:
    """R8: an attack that the very first line begins is a click into the window, and lasts until it is pressed anew."""
    stuck = False
    for number, tick in enumerate(ticks):
        fresh = tick.mouse.new_buttons if tick.mouse else ()
        if number == 0:
            stuck = fresh == (ATTACK,)
        elif ATTACK in fresh:
            stuck = False
        if stuck and tick.mouse is not None:
            buttons = tuple(button for button in tick.mouse.buttons if button != ATTACK)
            tick = replace(tick, mouse=replace(tick.mouse, buttons=buttons))
        yield tick


def action_row(now: Tick, following: Tick | None, rules: Rules) -> np.ndarray:
    """Float32 `[A]`: what the player did at a tick.

    Args:
        following: the next tick of the same episode, which shows what the action has brought about.
    """
    pressed = held_keys(now, following, rules.keep_escape)
    keyboard = np.array([name in pressed for name in KEYS], np.float32)
    pitch_yaw = camera(now, following, rules)
    mouse = pitch_yaw if rules.foveation is None else camera_encode(pitch_yaw, rules.foveation)
    return np.append(keyboard, mouse).astype(np.float32)


def held_keys(now: Tick, following: Tick | None, keep_escape: bool = False) -> set[str]:
    """Names of the keys and buttons that are down (R7, R9, R10, R11); unknown ones are left out."""
    pressed = {KEYBOARD[key] for key in now.keys if key in KEYBOARD}
    if now.mouse is not None:
        pressed |= {BUTTONS[button] for button in now.mouse.buttons if button in BUTTONS}
    if following is not None and None not in (now.hotbar, following.hotbar) and now.hotbar != following.hotbar:
        pressed.add(HOTBAR[following.hotbar])  # type: ignore[index]
    if now.gui and "ESC" in pressed and not keep_escape:
        pressed = pressed - {"ESC"} | {"inventory"}
    return pressed


def camera(now: Tick, following: Tick | None, rules: Rules) -> np.ndarray:
    """Float64 `[pitch, yaw]` in degrees, positive is down and right (R3, R5, R6)."""
    if now.mouse is None:
        return np.zeros(2)
    if rules.camera == "state" and following is not None:
        if now.gui and not following.gui:
            return np.zeros(2)  # the cursor jumps to the middle as the GUI closes
        if now.gui and now.mouse.scaled and following.mouse and following.mouse.scaled:
            (x, y), (next_x, next_y) = now.mouse.scaled, following.mouse.scaled
            return np.array([next_y - y, next_x - x]) * DEGREES_PER_PIXEL
        if not now.gui and now.pitch_yaw and following.pitch_yaw:
            (pitch, yaw), (next_pitch, next_yaw) = now.pitch_yaw, following.pitch_yaw
            return np.array([next_pitch - pitch, (next_yaw - yaw + 180) % 360 - 180])
    scale = GUI_SCALE.get(rules.version, 1.0) if now.gui else 1.0
    return np.array([now.mouse.dy, now.mouse.dx]) * DEGREES_PER_PIXEL * scale
