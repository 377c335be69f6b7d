"""Avatars, drawn by ourselves: a face per id, as PNG, from ellipses with smooth edges."""

import colorsys
import hashlib
import math
import struct
import zlib
from collections import OrderedDict
from functools import lru_cache

SIZES = {0: 640, 46: 46, 64: 64, 96: 96, 132: 132}
"""The last path segment of a headimgurl, and how many pixels it means (WECHAT.md W47)."""

DEAD = ""
"""The name of the placeholder."""
_MOST_CHANGES = 10_000

RGB = tuple[int, int, int]
_GREY, _PALE = (214, 217, 222), (244, 245, 247)
_STEPS = 4
_SKINS = ((255, 224, 196), (241, 194, 150), (224, 172, 125), (198, 134, 86), (141, 85, 54))
_HAIRS = (
    (44, 34, 43),
    (92, 58, 38),
    (181, 120, 60),
    (226, 190, 110),
    (120, 120, 130),
    (70, 60, 120),
)


def picture_id(seed: str) -> str:
    """Name a picture.

    The last four characters vouch for the rest, so that a dead id is told from a live one.
    """
    name = hashlib.sha256(seed.encode()).hexdigest()[:40]
    return name + _seal(name)


class Portraits:
    """Whose avatar is which picture; a picture that was changed is dead (WECHAT.md W50, W51)."""

    def __init__(self) -> None:
        self._changes: OrderedDict[str, int] = OrderedDict()
        self._dead: OrderedDict[str, None] = OrderedDict()

    def url(self, host: str, openid: str) -> str:
        """Return somebody's headimgurl, with this sandbox at ``host``: wherever it was called."""
        return f"http://{host}/mmopen/{self._name(openid)}/132"

    def change(self, openid: str) -> None:
        """Let somebody have another avatar; the last 10 000 changes are remembered."""
        self._dead[self._name(openid)] = None
        self._changes[openid] = self._changes.pop(openid, 0) + 1
        for kept in (self._dead, self._changes):
            if len(kept) > _MOST_CHANGES:
                kept.popitem(last=False)

    def is_dead(self, name: str) -> bool:
        """Tell whether a picture was changed since, or never was one."""
        return name in self._dead or name[-4:] != _seal(name[:-4])

    def _name(self, openid: str) -> str:
        times = self._changes.get(openid, 0)
        return picture_id(f"{openid}/{times}" if times else openid)


@lru_cache(maxsize=512)
def draw(name: str, size: int) -> bytes:
    """Return a square PNG: the face of that id, or WeChat's placeholder for a dead one."""
    if name == DEAD or name[-4:] != _seal(name[:-4]):
        canvas = _Canvas(size, _GREY)
        canvas.ellipse(0.5, 0.4, 0.18, 0.18, _PALE)
        canvas.ellipse(0.5, 0.95, 0.34, 0.32, _PALE)
    else:
        canvas = _face(size, hashlib.sha256(name.encode()).digest())
    return canvas.png()


def _seal(name: str) -> str:
    return hashlib.sha256(f"picture/{name}".encode(errors="replace")).hexdigest()[:4]


def _face(size: int, dice: bytes) -> "_Canvas":
    hue = dice[0] / 256
    skin, hair = _SKINS[dice[1] % len(_SKINS)], _HAIRS[dice[2] % len(_HAIRS)]
    canvas = _Canvas(size, _pastel(hue, 0.86))
    canvas.ellipse(0.5, 0.5, 0.47, 0.47, _pastel(hue, 0.74))
    if dice[3] % 2:
        canvas.ellipse(0.5, 0.56, 0.32, 0.36, hair)  # long hair falls behind the shoulders
    canvas.ellipse(0.5, 1.06, 0.38, 0.26, _pastel(hue + 0.3 + dice[4] / 640, 0.5))
    canvas.ellipse(0.5, 0.41, 0.28, 0.27, hair)
    canvas.ellipse(0.5, 0.53, 0.24, 0.27, skin)
    tilt = (dice[5] % 5 - 2) / 80
    canvas.ellipse(0.5 + tilt, 0.31, 0.215, 0.075 + dice[6] % 4 / 100, hair)
    _features(canvas, dice, skin)
    return canvas


def _features(canvas: "_Canvas", dice: bytes, skin: RGB) -> None:
    ink = (46, 38, 46)
    apart, eye = 0.085 + dice[7] % 4 / 100, 0.022 + dice[8] % 3 / 200
    for x in (0.5 - apart, 0.5 + apart):
        canvas.ellipse(x, 0.51, eye, eye * 1.3, ink)
        canvas.ellipse(x + eye / 3, 0.5, eye / 3, eye / 3, (255, 255, 255))
        canvas.ellipse(x * 1.3 - 0.15, 0.6, 0.04, 0.025, _mix(skin, (236, 110, 110), 0.4))
    smile = 0.05 + dice[9] % 4 / 100
    canvas.ellipse(0.5, 0.65, smile, 0.05, (190, 70, 74))
    canvas.ellipse(0.5, 0.625, smile + 0.015, 0.04, skin)


def _pastel(hue: float, lightness: float) -> RGB:
    red, green, blue = colorsys.hls_to_rgb(hue % 1, lightness, 0.6)
    return round(red * 255), round(green * 255), round(blue * 255)


def _mix(under: tuple[int, ...], over: RGB, share: float) -> RGB:
    red, green, blue = (round(u + (o - u) * share) for u, o in zip(under, over, strict=True))
    return red, green, blue


class _Canvas:
    """A square of pixels; coordinates run from 0 to 1."""

    def __init__(self, size: int, colour: RGB) -> None:
        self._size = size
        self._rows = [bytearray(bytes(colour) * size) for _ in range(size)]

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: RGB) -> None:
        """Fill an ellipse: whole runs at once, only its edge pixel by pixel."""
        size = self._size
        x, y, rx, ry = x * size, y * size, rx * size, ry * size
        for row in range(max(0, int(y - ry)), min(size, math.ceil(y + ry))):
            heights = (((row + (step + 0.5) / _STEPS) - y) / ry for step in range(_STEPS))
            widths = [rx * math.sqrt(max(0.0, 1 - height * height)) for height in heights]
            self._run(row, x, widths, colour)

    def _run(self, row: int, x: float, widths: list[float], colour: RGB) -> None:
        """Paint one row of a shape whose half widths at the quarters of that row are ``widths``."""
        pixels, size = self._rows[row], self._size
        left, right = max(0, int(x - max(widths))), min(size, math.ceil(x + max(widths)))
        solid = max(left, math.ceil(x - min(widths))), min(right, int(x + min(widths)))
        if solid[0] < solid[1]:
            pixels[3 * solid[0] : 3 * solid[1]] = bytes(colour) * (solid[1] - solid[0])
        else:
            solid = right, right
        for column in (*range(left, solid[0]), *range(solid[1], right)):
            covered = sum(
                max(0.0, min(column + 1, x + w) - max(column, x - w)) for w in widths
            ) / len(widths)
            at = slice(3 * column, 3 * column + 3)
            pixels[at] = bytes(_mix(tuple(pixels[at]), colour, covered))

    def png(self) -> bytes:
        """Return the file: 8-bit RGB, no filters."""
        header = struct.pack(">IIBBBBB", self._size, self._size, 8, 2, 0, 0, 0)
        data = zlib.compress(b"".join(b"\0" + row for row in self._rows))
        return (
            b"\x89PNG\r\n\x1a\n"
            + _chunk(b"IHDR", header)
            + _chunk(b"IDAT", data)
            + _chunk(b"IEND", b"")
        )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
