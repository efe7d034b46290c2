"""Good folders, spoilt at random, and what may come of it.

A spoilt folder is either still read right (every image with its own mask, in its own part), or refused
with a line that names a spoilt file. What no reader can know is let through: a flipped bit in a file
without check sums, two masks that changed places.
"""

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tifffile

from support import folder_annotations, folder_layouts, folder_masks
from support.folders import COUNT, IMAGES, PARTS, Maker

Random = np.random.Generator
TEXT_SUFFIXES = (".csv", ".txt", ".json", ".yaml")


@dataclass(frozen=True)
class Base:
    """A good folder.

    Attributes:
        write: makes it.
        flags: words of the command line.
        parts: whether the folder says the parts.
        unknowable: kinds of damage after which a mask may differ from the truth without a word.
        unknowable_skipping: more of them with --skip-bad, which leaves out label files that belong to no image.
    """

    write: Callable[[Maker], None]
    binary: bool = False
    flags: tuple[tuple[str, str], ...] = ()
    splits: bool = False
    unknowable: frozenset[str] = frozenset()
    unknowable_skipping: frozenset[str] = frozenset()


def _photos(make: Maker) -> None:
    make.images("images/cell_{}.jpg")
    make.masks(lambda m: m * 255)
    make.text("split.csv", "file,split\n" + "".join(f"cell_{n}.jpg,{part}\n" for n, part in enumerate(PARTS)))
    make.text("classes.txt", "background\npolyp\n")


def _deep(make: Maker) -> None:
    for number in range(COUNT):
        pixels = IMAGES[number].astype(np.uint16) * 200
        tifffile.imwrite(make.know(f"images/cell_{number}.tif", number), pixels, compression="zlib")
        tifffile.imwrite(make.path(f"masks/cell_{number}.tif"), make.maps[number], compression="lzw")


def _plain_bytes(make: Maker) -> None:
    make.images("images/cell_{}.bmp")
    make.masks(pattern="masks/cell_{}.bmp")


def _arrays(make: Maker) -> None:
    make.images("images/cell_{}.webp")
    for number in range(COUNT):
        np.save(make.path(f"masks/cell_{number}.npy"), make.maps[number])


_FLIP = frozenset({"flip", "swap", "huge", "encode"})  # no check sums
_TEXT = _FLIP | {"truncate"}  # a line of text may be cut short and still be one
BASES = {
    "photos": Base(_photos, True, (("split", "split.csv"),), True),
    "colours": Base(folder_masks.class_dict_csv),
    "palettes": Base(folder_masks.palette_adaptive),
    "deep": Base(_deep, unknowable=_FLIP),
    "plain-bytes": Base(_plain_bytes, unknowable=_FLIP),
    "arrays": Base(_arrays, unknowable=_FLIP),
    "parts": Base(folder_layouts.parts_outside, splits=True),
    "flat": Base(next(case.write for case in folder_layouts.LAYOUTS if case.key == "flat-suffix")),
    "objects": Base(
        folder_layouts.mask_per_object, True, unknowable=frozenset({"delete", "rename", "dangle", "suffix", "folder"})
    ),
    "coco": Base(folder_annotations.coco_polygons, unknowable=_FLIP),
    "labelme": Base(folder_annotations.labelme, unknowable=_FLIP),
    "yolo": Base(
        folder_annotations.yolo,
        splits=True,
        unknowable=_TEXT | {"delete", "suffix", "copy", "empty", "exchange"},
        unknowable_skipping=frozenset({"rename"}),
    ),
}


# Kinds of damage: (file, random, all files) -> the names that an error may use for it.


def _truncate(path: Path, random: Random, files: list[Path]) -> list[Path]:
    content = path.read_bytes()
    path.write_bytes(content[: int(random.integers(1, max(2, len(content))))])
    return [path]


def _flip(path: Path, random: Random, files: list[Path]) -> list[Path]:
    content = bytearray(path.read_bytes())
    for place in random.integers(0, len(content), int(random.integers(1, 5))) if content else ():
        content[place] ^= 1 << int(random.integers(8))
    path.write_bytes(bytes(content))
    return [path]


def _exchange(path: Path, random: Random, files: list[Path]) -> list[Path]:
    """With a file of another folder or kind: an image for a mask, a mask for a list."""
    others = [other for other in files if other.is_file() and _role(other) != _role(path)]
    other = others[int(random.integers(len(others)))] if others else path
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)
    return [path, other]


def _role(path: Path) -> tuple[str, str, bool]:
    return path.parent.name, path.suffix, "mask" in path.name


def _rename(path: Path, random: Random, files: list[Path]) -> list[Path]:
    other = files[int(random.integers(len(files)))].stem
    stems = [f"{path.stem}0", f"{path.stem}_mask", f"x{path.stem}", path.stem.upper(), f"{other}_mask", "renamed"]
    target = path.with_stem(str(random.choice(stems)))
    if target.exists():
        target = path.with_stem("renamed")
    path.rename(target)
    return [path, target]


def _copy(path: Path, random: Random, files: list[Path]) -> list[Path]:
    stems = [f"{path.stem} (1)", f"{path.stem}_copy", f"Copy of {path.stem}", f"{path.stem}.old"]
    target = path.with_stem(str(random.choice(stems)))
    shutil.copy(path, target)
    return [path, target]


def _suffix(path: Path, random: Random, files: list[Path]) -> list[Path]:
    target = path.with_suffix(str(random.choice([".png", ".jpg", ".tif", ".bmp", ".txt", ".PNG~", ".gif", ""])))
    if not target.exists():
        path.rename(target)
    return [path, target]


def _empty(path: Path, random: Random, files: list[Path]) -> list[Path]:
    path.write_bytes(b"")
    return [path]


def _say(path: Path, random: Random, files: list[Path]) -> list[Path]:
    path.write_text("<html><body>404 Not Found</body></html>\n" * int(random.integers(1, 9)))
    return [path]


def _swap(path: Path, random: Random, files: list[Path]) -> list[Path]:
    """The first and the last bytes exchange their places."""
    content = path.read_bytes()
    count = int(random.integers(1, max(2, min(64, len(content) // 2))))
    path.write_bytes(content[-count:] + content[count:-count] + content[:count])
    return [path]


_HUGE = (
    b"9" * 5000,
    b"-9999999999",
    b"1e999",
    b"4294967295",
    b"9223372036854775808",
    b"-0",
    b"NaN",
    b"0x7f",
    b"\xd9\xa1",
)


def _huge(path: Path, random: Random, files: list[Path]) -> list[Path]:
    """A number of a text replaced; of a binary file 2 to 8 bytes set to the highest or lowest value, mostly in its
    header."""
    content = path.read_bytes()
    numbers = [*re.finditer(rb"-?[0-9]+(?:\.[0-9]+)?", content)] if path.suffix in TEXT_SUFFIXES else []
    if numbers:
        found, new = numbers[int(random.integers(len(numbers)))], _HUGE[int(random.integers(len(_HUGE)))]
        path.write_bytes(content[: found.start()] + new + content[found.end() :])
    elif content:
        place = int(random.integers(min(len(content), 400)))
        count = int(random.choice([2, 4, 8]))
        path.write_bytes(content[:place] + random.choice([b"\xff", b"\x00"]) * count + content[place + count :])
    return [path]


def _nest(path: Path, random: Random, files: list[Path]) -> list[Path]:
    """Ten to a hundred thousand brackets, instead of a value or anywhere."""
    content = path.read_bytes()
    levels = int(random.choice([10, 500, 100_000]))
    opened, closed = ((b"[", b"]"), (b'{"a":', b"}"), (b"- ", b""), (b'"', b""))[int(random.integers(4))]
    values = [*re.finditer(rb"[0-9.]+|\"[^\"]*\"", content)]
    if path.suffix not in TEXT_SUFFIXES or not values:
        path.write_bytes(opened * levels)
    else:
        found = values[int(random.integers(len(values)))]
        path.write_bytes(content[: found.start()] + opened * levels + b"1" + closed * levels + content[found.end() :])
    return [path]


def _encode(path: Path, random: Random, files: list[Path]) -> list[Path]:
    """As other programs encode text; a file of values gets bytes before its beginning."""
    content = path.read_bytes()
    if path.suffix not in TEXT_SUFFIXES:
        path.write_bytes(b"\xef\xbb\xbf" + content)
        return [path]
    text = content.decode("utf-8", "replace")
    codings = ("utf-16", "utf-16-be", "utf-32", "utf-8-sig", "utf-7", "cp037")
    choice = int(random.integers(len(codings) + 2))
    if choice < len(codings):
        path.write_bytes(text.encode(codings[choice]))
    else:
        place = int(random.integers(len(content) + 1))
        piece = (b"\xe9\xff", b"\x00", b"\x1b[31m", b"\xe2\x80\xae", b"\r", b"\xed\xa0\x80")[int(random.integers(6))]
        path.write_bytes(content[:place] + piece + content[place:])
    return [path]


def _delete(path: Path, random: Random, files: list[Path]) -> list[Path]:
    path.unlink()
    return [path]


def _folder(path: Path, random: Random, files: list[Path]) -> list[Path]:
    path.unlink()
    path.mkdir()
    return [path]


def _dangle(path: Path, random: Random, files: list[Path]) -> list[Path]:
    path.unlink()
    path.symlink_to(path.parent / "nowhere")
    return [path]


def _forbid(path: Path, random: Random, files: list[Path]) -> list[Path]:
    path.chmod(0)
    return [path]


DAMAGES: dict[str, Callable[[Path, Random, list[Path]], list[Path]]] = {
    "truncate": _truncate,
    "flip": _flip,
    "exchange": _exchange,
    "rename": _rename,
    "copy": _copy,
    "suffix": _suffix,
    "empty": _empty,
    "say": _say,
    "swap": _swap,
    "huge": _huge,
    "nest": _nest,
    "encode": _encode,
    "delete": _delete,
    "folder": _folder,
    "dangle": _dangle,
} | ({"forbid": _forbid} if os.geteuid() else {})


@dataclass
class Spoilt:
    """A folder after its damage.

    Attributes:
        name, base: what it was.
        make: the folder and its truth.
        done: kind of damage and the files that it concerns.
    """

    name: str
    base: Base
    make: Maker
    done: list[tuple[str, list[Path]]] = field(default_factory=list)

    @property
    def names(self) -> set[str]:
        """What an error may call the spoilt files: by their stem, which their partners share. Of a list that
        is not there any more, nothing can be said but that there are no masks."""
        stems = {path.name.split(".")[0] for _kind, paths in self.done for path in paths}
        bare = {stem.removesuffix("_mask") for stem in stems}
        gone = {"no masks" for kind, paths in self.done if paths[0].suffix == ".json" and kind in ("delete", "suffix")}
        return gone | stems | bare | {f"{path.parent.name}/" for _kind, paths in self.done for path in paths}

    @property
    def knowable(self) -> bool:
        """Can a reader know that a mask is not what it was?"""
        return not any(kind in self.base.unknowable for kind, _paths in self.done)

    def touched(self, path: Path) -> bool:
        return any(path in paths for _kind, paths in self.done)

    def describe(self) -> str:
        return "; ".join(
            f"{kind} {', '.join(path.relative_to(self.make.root).as_posix() for path in paths)}"
            for kind, paths in self.done
        )


def spoil(root: Path, seed: int) -> Spoilt:
    """A good folder with 1 to 4 spoilt files, by the seed."""
    random = np.random.default_rng(seed)
    name = str(random.choice(list(BASES)))
    base = BASES[name]
    make = Maker(root, base.binary)
    base.write(make)
    spoilt = Spoilt(name, base, make)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    singles = [path for path in files if path.suffix in TEXT_SUFFIXES]
    for _count in range(int(random.choice([1, 1, 1, 2, 4]))):
        pool = singles if singles and random.random() < 0.25 else files
        path = pool[int(random.integers(len(pool)))]
        if path.is_symlink() or not path.is_file():
            continue
        kind = str(random.choice(list(DAMAGES)))
        spoilt.done.append((kind, DAMAGES[kind](path, random, files)))
    return spoilt
