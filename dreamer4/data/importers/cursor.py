"""The mouse cursor, which recordings of GUIs leave out (R12): without it, clicks there have no visible cause."""

import numpy as np

WINDOW_HEIGHT = 720  # pixels of the recording player's window, in which the cursor's position is given

# Our own drawing, 16 x 16: '#' is the dark outline, 'o' the light inside, '.' the half-clear shadow.
_DRAWING = """
#
##
#o#
#oo#
#ooo#
#oooo#
#ooooo#
#oooooo#
#ooooooo#
#oooooooo#
#oooo#####.
#oo#oo#....
#o# #oo#.
##   #oo#.
#     ###.
       ...
""".strip("\n").splitlines()
_SHADES = {"#": (20, 255), "o": (245, 255), ".": (0, 96)}  # grey, opacity


def _sprite() -> tuple[np.ndarray, np.ndarray]:
    """Grey and opacity, float32 `[16, 16, 1]` in 0 to 255 and 0 to 1."""
    grey, opacity = np.zeros((16, 16, 1), np.float32), np.zeros((16, 16, 1), np.float32)
    for row, line in enumerate(_DRAWING):
        for column, mark in enumerate(line):
            if mark in _SHADES:
                grey[row, column], opacity[row, column] = _SHADES[mark][0], _SHADES[mark][1] / 255
    return grey, opacity


GREY, OPACITY = _sprite()


def draw_cursor(frame_HWC: np.ndarray, x: float, y: float) -> np.ndarray:
    """A copy of the frame with the cursor's tip at window position `x, y`; what lies outside is cut off."""
    height, width = frame_HWC.shape[:2]
    left, top = int(x * height / WINDOW_HEIGHT), int(y * height / WINDOW_HEIGHT)
    if left <= -16 or top <= -16 or left >= width or top >= height:
        return frame_HWC
    rows = slice(max(0, -top), min(16, height - top))
    columns = slice(max(0, -left), min(16, width - left))
    result = frame_HWC.copy()
    under = result[max(0, top) : top + 16, max(0, left) : left + 16]
    opacity = OPACITY[rows, columns]
    under[:] = np.round(under * (1 - opacity) + GREY[rows, columns] * opacity)
    return result
