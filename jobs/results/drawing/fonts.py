"""Fonts for labels: Pillow's own, and another one of this machine for characters that it lacks."""

import os
import sys
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

from PIL import ImageFont

from pipeline.errors import SpecError
from pipeline.text import printable

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Families with many scripts, best first; a part of the file's name in lower case.
_WIDE_FONTS = (
    *("notosanscjk", "sourcehansans", "arialuni", "arial unicode", "wqy", "droidsansfallback", "hiragino", "msyh"),
    *("malgun", "unifont", "dejavusans.", "notosans-regular", "freesans.", "liberationsans-regular", "arial."),
)
_SUFFIXES = (".ttf", ".otf", ".ttc")
# No character: what a font draws for it, it draws for every character that it lacks.
_ABSENT = "\U0010fffe"


@lru_cache(64)
def _own_font(size: int) -> Font:
    return ImageFont.load_default(size=size)


@lru_cache(64)
def _font_of_file(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


def check_font(path: Path) -> None:
    """Refuse a font file that cannot be used.

    Raises:
        SpecError: it is missing, or no font.
    """
    try:
        _font_of_file(str(path), 12)
    except OSError as error:
        reason = error.strerror if error.errno else str(error)
        raise SpecError(f"{path} cannot be used as a font: {reason}; name a .ttf, .otf or .ttc file.") from None


def choose_font(text: str, size: float, font: Path | None = None) -> Font:
    """Return a font that has the characters of a text, or most of them; of equals Pillow's own (or `font`)."""
    whole = max(1, round(size))
    own = _own_font(whole) if font is None else _font_of_file(str(font), whole)
    if text.isascii() or has_characters(own, text):
        return own
    path = _system_font("".join(sorted(set(text))))
    if path is None:
        path = _best_font("".join(sorted(set(text))), font)
    return own if path is None else _font_of_file(path, whole)


@lru_cache(4096)
def writable(text: str, font: Path | None = None) -> str:
    """Return a text in one line, in which characters that no font here has are escaped, such as \\u732b."""
    line = printable(" ".join(text.split()))
    if line.isascii():
        return line
    chosen = choose_font(line, 12, font)
    if has_characters(chosen, line):
        return line
    return "".join(char if has_characters(chosen, char) else ascii(char)[1:-1] for char in line)


@lru_cache(1024)
def _system_font(characters: str) -> str | None:
    """Return a font file of this machine with these characters."""
    for path in _system_fonts():
        try:
            if has_characters(_font_of_file(path, 12), characters):
                return path
        except OSError:
            # Not a font that FreeType reads; the next one may be.
            continue
    return None


@lru_cache(1024)
def _best_font(characters: str, font: Path | None) -> str | None:
    """Return the font file of this machine that has most of these characters; None where Pillow's has as many."""
    own = _own_font(12) if font is None else _font_of_file(str(font), 12)
    best, most = None, sum(has_characters(own, character) for character in characters)
    for path in _system_fonts():
        try:
            found = sum(has_characters(_font_of_file(path, 12), character) for character in characters)
        except OSError:
            # Not a font that FreeType reads; the next one may be.
            continue
        if found > most:
            best, most = path, found
    return best


def has_characters(font: Font, text: str) -> bool:
    """Return whether a font has all characters of a text: none is drawn as the sign for a missing one."""
    if not isinstance(font, ImageFont.FreeTypeFont):
        return text.isascii()
    absent = _drawn(font, _ABSENT)
    return all(character.isspace() or _drawn(font, character) != absent for character in set(text))


def _drawn(font: ImageFont.FreeTypeFont, character: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)


@lru_cache(1)
def _system_fonts() -> tuple[str, ...]:
    """Return the font files of this machine with many scripts, best first."""
    files = [path for folder in _font_folders() if folder.is_dir() for path in _files(folder)]
    ranked = []
    for path in files:
        name = path.name.lower()
        rank = next((number for number, part in enumerate(_WIDE_FONTS) if name.startswith(part)), None)
        if rank is not None:
            ranked.append((rank, str(path)))
    return tuple(path for _, path in sorted(ranked))


def _files(folder: Path) -> Iterator[Path]:
    for root, _, names in os.walk(folder):
        yield from (Path(root, name) for name in names if name.lower().endswith(_SUFFIXES))


def _font_folders() -> list[Path]:
    """Return where fonts are installed, of the system, of the user and of matplotlib."""
    return [*_installed_folders(), *_matplotlib_folders()]


def _matplotlib_folders() -> list[Path]:
    # Found, not imported, which takes half a second.
    found = find_spec("matplotlib")
    return [] if found is None or found.origin is None else [Path(found.origin).parent / "mpl-data/fonts/ttf"]


def _installed_folders() -> list[Path]:
    if sys.platform == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), Path.home() / "Library/Fonts"]
    if sys.platform == "win32":
        return [Path(os.environ.get("WINDIR", r"C:\Windows"), "Fonts")]
    data = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local/share")
    return [Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), Path(data, "fonts"), Path.home() / ".fonts"]
