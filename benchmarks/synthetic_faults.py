"""How many drawn faults the dataset doctor finds, and how often it is wrong on clean data.

    python benchmarks/synthetic_faults.py --folders 120 --json build/benchmarks/faults-found.json

Each folder is a clean set of drawn images, of one of four families, with a train, val and test split. A quarter of the
folders stay clean; the others get three faults of different kinds, each in files that no other fault has. A fault is
found when a finding of a check that is right for its kind names one of its files. A false alarm is an error or warning
that no fault explains.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from rich.console import Console
from scipy import ndimage

from ubend.core.progress import Reporter
from ubend.core.settings import make_settings
from ubend.doctor.checks import QUICK, THOROUGH, run_checks
from ubend.doctor.finding import Finding
from ubend.doctor.reading import inspect_folder

SIDE_PX = 128
SPLITS = {"train": 28, "val": 10, "test": 10}
FAMILIES = ("blobs", "blobs, some empty", "colours", "values")
_COLORS = np.array([(0, 0, 0), (220, 40, 40), (40, 200, 60), (60, 80, 230)], np.uint8)

_Bytes = NDArray[np.uint8]


class Folder:
    """A drawn data set on disk, and which of its pairs are still without fault."""

    def __init__(self, root: Path, family: str, rng: np.random.Generator) -> None:
        self.root, self.family, self.rng = root, family, rng
        self.free: dict[str, list[str]] = {}
        for split, count in SPLITS.items():
            self.free[split] = [f"{split}{i:03d}" for i in range(count)]
            for kind in ("images", "masks"):
                (root / split / kind).mkdir(parents=True)
            for name in self.free[split]:
                image, classes = draw_pair(family, rng)
                Image.fromarray(image).save(self.image(split, name))
                Image.fromarray(self.encode(classes)).save(self.mask(split, name))
            rng.shuffle(self.free[split])

    def encode(self, classes: _Bytes) -> _Bytes:
        """Class indices -> the label values of the family."""
        if self.family == "colours":
            return np.asarray(_COLORS[classes])
        return classes if self.family == "values" else np.asarray(classes * np.uint8(255))

    def image(self, split: str, name: str) -> Path:
        return self.root / split / "images" / f"{name}.png"

    def mask(self, split: str, name: str) -> Path:
        return self.root / split / "masks" / f"{name}.png"

    def take(self, split: str | None = None, marked: bool = False) -> tuple[str, str]:
        """A pair that has no fault yet; `marked`: with objects."""
        split = split or str(self.rng.choice(list(SPLITS), p=[0.6, 0.2, 0.2]))
        split = split if self.free[split] else "train"  # a fault may take a whole split
        for name in list(self.free[split]):
            if not marked or np.asarray(Image.open(self.mask(split, name))).any():
                self.free[split].remove(name)
                return split, name
        raise LookupError(split)

    def add(self, split: str, image: Image.Image, mask: Path) -> Path:
        """A further pair."""
        name = f"new{self.rng.integers(10**9)}"
        image.save(self.image(split, name))
        shutil.copyfile(mask, self.mask(split, name))
        return self.image(split, name)


def draw_pair(family: str, rng: np.random.Generator) -> tuple[_Bytes, _Bytes]:
    """(H, W, 3) image and (H, W) class indices."""
    h = w = SIDE_PX
    y, x = np.mgrid[:h, :w]
    classes = np.zeros((h, w), np.uint8)
    kinds = 1 if family.startswith("blobs") else 3
    count = 0 if family == "blobs, some empty" and rng.random() < 0.2 else int(rng.integers(max(2, kinds), 6))
    for index in range(count):
        angle, radius = rng.uniform(0, np.pi), rng.uniform(0.06, 0.2, 2) * h
        cy, cx = rng.uniform(0.12, 0.88, 2) * h
        u = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
        v = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
        bumps = 1 + 0.15 * np.sin(rng.integers(2, 6) * np.arctan2(v, u) + rng.uniform(0, 6))
        classes[(u / radius[0]) ** 2 + (v / radius[1]) ** 2 < bumps] = 1 + index % kinds
    palette = np.array([(150, 120, 100), (190, 90, 80), (100, 160, 90), (90, 100, 170)], float)
    colors = palette + rng.normal(0, 8, (4, 3)) + rng.normal(0, 10, 3)
    image = colors[classes]
    image = ndimage.gaussian_filter(image, (1, 1, 0))
    texture = sum(
        ndimage.gaussian_filter(rng.normal(0, 1, (h, w)), scale) * scale * strength
        for scale, strength in ((1.5, 12), (4, 12), (16, 25))
    )
    light = 1 + 0.2 * (rng.uniform(-1, 1) * (x / w - 0.5) + rng.uniform(-1, 1) * (y / h - 0.5))
    image = (image + np.asarray(texture)[:, :, None]) * light[:, :, None] + rng.normal(0, 4, (h, w, 3))
    return image.clip(0, 255).astype(np.uint8), classes


@dataclass(frozen=True)
class Fault:
    """A kind of fault.

    Attributes:
        kind, group: its name; what the targets are stated for.
        strength: how strong it is drawn.
        checks: the checks that are right for it.
        draw: puts it into a folder; returns the files that it concerns, none: the set as a whole.
        alone: nothing else can be found beside it, since the folder's pairs are not known.
    """

    kind: str
    group: str
    strength: str
    checks: tuple[str, ...]
    draw: Callable[[Folder], Sequence[Path]]
    alone: bool = False


def _edit_mask(change: Callable[[_Bytes, Folder], _Bytes], split: str | None = None) -> Callable[[Folder], list[Path]]:
    def draw(folder: Folder) -> list[Path]:
        where = folder.take(split, marked=True)
        path = folder.mask(*where)
        mask = np.asarray(Image.open(path))
        changed = change(mask, folder)
        Image.fromarray(np.ascontiguousarray(changed)).save(path)
        return [path]

    return draw


def _edit_image(change: Callable[[Image.Image], Image.Image]) -> Callable[[Folder], list[Path]]:
    def draw(folder: Folder) -> list[Path]:
        path = folder.image(*folder.take())
        with Image.open(path) as image:
            changed = change(image.convert("RGB"))
        changed.save(path)
        return [path]

    return draw


def _write(change: Callable[[bytes], bytes]) -> Callable[[Folder], list[Path]]:
    def draw(folder: Folder) -> list[Path]:
        path = folder.image(*folder.take())
        path.write_bytes(change(path.read_bytes()))
        return [path]

    return draw


def _copy(
    change: Callable[[Image.Image], Image.Image], to: str | None, flip: bool = False
) -> Callable[[Folder], list[Path]]:
    """A changed copy of an image; to another split, or (None) into its own."""

    def draw(folder: Folder) -> list[Path]:
        split, name = folder.take(("test" if folder.free["test"] else "val") if to else "train")
        with Image.open(folder.image(split, name)) as image:
            copy = folder.add(to or split, change(image.convert("RGB")), folder.mask(split, name))
        if flip:
            mask = folder.mask(to or split, copy.stem)
            with Image.open(mask) as labels:
                flipped = ImageOps.mirror(labels)
            flipped.save(mask)
        return [copy, folder.image(split, name)]

    return draw


def _recompress(image: Image.Image, quality: int = 50) -> Image.Image:
    import io

    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def _resample(mask: _Bytes, folder: Folder) -> _Bytes:
    small = Image.fromarray(mask).resize((SIDE_PX // 2, SIDE_PX // 2), Image.Resampling.BILINEAR)
    return np.asarray(small.resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC))


def _near(mask: _Bytes, folder: Folder) -> _Bytes:
    """One class with a value next to its own."""
    if folder.family == "colours":
        return np.where((mask == _COLORS[1]).all(axis=2, keepdims=True), np.uint8(12) ^ mask, mask)
    if folder.family == "values":
        return mask + 1  # all classes: numbers from 1, not from 0
    return np.where(mask == 255, np.uint8(254), mask)


def _ones(mask: _Bytes, folder: Folder) -> _Bytes:
    return mask // 255 if folder.family.startswith("blobs") else _near(mask, folder)


def _shift(mask: _Bytes, folder: Folder) -> _Bytes:
    angle = folder.rng.uniform(0, 2 * np.pi)
    dy, dx = (round(0.05 * SIDE_PX * side) for side in (np.sin(angle), np.cos(angle)))
    return np.roll(mask, (dy, dx), (0, 1))


def _specks(mask: _Bytes, folder: Folder) -> _Bytes:
    out = mask.copy()
    value = mask.reshape(-1, *mask.shape[2:])[np.flatnonzero(mask.reshape(SIDE_PX**2, -1).any(axis=1))[0]]
    for y, x in folder.rng.integers(0, SIDE_PX - 1, (25, 2)):
        out[y, x] = value
    return out


def _invert(mask: _Bytes, folder: Folder) -> _Bytes:
    """Background and the first class exchanged."""
    background, objects = folder.encode(np.array([[0]], np.uint8)), folder.encode(np.array([[1]], np.uint8))
    axes = tuple(range(2, mask.ndim))
    is_background, is_object = ((mask == label).all(axis=axes, keepdims=True) for label in (background, objects))
    return np.where(is_background, objects, np.where(is_object, background, mask))


def _swap(folder: Folder) -> list[Path]:
    one, other = folder.take("train", marked=True), folder.take("train", marked=True)
    first, second = folder.mask(*one), folder.mask(*other)
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)
    return [first, second]


def _share(folder: Folder) -> list[Path]:
    one, other = folder.take("train", marked=True), folder.take("train", marked=True)
    shutil.copyfile(folder.mask(*one), folder.mask(*other))
    return [folder.mask(*one), folder.mask(*other)]


def _remove(kind: str) -> Callable[[Folder], list[Path]]:
    def draw(folder: Folder) -> list[Path]:
        where = folder.take()
        path, other = folder.image(*where), folder.mask(*where)
        (other if kind == "mask" else path).unlink()
        return [path if kind == "mask" else other]

    return draw


def _double(folder: Folder) -> list[Path]:
    path = folder.image(*folder.take())
    Image.open(path).convert("RGB").save(path.with_suffix(".jpg"))
    return []


def _own_mask(folder: Folder) -> list[Path]:
    where = folder.take()
    shutil.copyfile(folder.mask(*where), folder.image(*where))
    return [folder.mask(*where)]


def _jpeg_mask(folder: Folder) -> list[Path]:
    path = folder.mask(*folder.take(marked=True))
    with Image.open(path) as mask:
        mask.save(path.with_suffix(".jpg"), quality=90)
    path.unlink()
    return [path.with_suffix(".jpg")]


def _contradict(folder: Folder) -> list[Path]:
    split, name = folder.take("train", marked=True)
    mask = np.asarray(Image.open(folder.mask(split, name)))
    copy = folder.add(split, Image.open(folder.image(split, name)), folder.mask(split, name))
    Image.fromarray(np.roll(mask, 3, axis=0)).save(folder.mask(split, copy.stem))
    return [copy, folder.image(split, name)]


def _missing_class(folder: Folder) -> list[Path]:
    """A class that only one split holds: drawn into two masks of it."""
    for split, name in (folder.take("test", marked=True), folder.take("test", marked=True)):
        path = folder.mask(split, name)
        mask = np.asarray(Image.open(path)).copy()
        mask[40:70, 40:70] = (250, 250, 20) if folder.family == "colours" else 4 if folder.family == "values" else 128
        Image.fromarray(mask).save(path)
    return []


def _shift_domain(folder: Folder) -> list[Path]:
    for name in folder.free["test"]:
        path = folder.image("test", name)
        with Image.open(path) as image:
            ImageEnhance.Brightness(image).enhance(0.6).save(path)
    folder.free["test"] = []
    return []


def _turn_exif(folder: Folder) -> list[Path]:
    path = folder.image(*folder.take())
    with Image.open(path) as image:
        exif = image.getexif()
        exif[0x0112] = 3
        image.save(path, exif=exif)
    return [path]


_FIT = ("shifted mask", "flipped mask", "unfitting mask", "inverted mask")
_VALUES = ("value off by one", "near colour", "odd values", "resampled mask")
_NEW_CLASS = ("class missing in training", "class without score")
_COPIES = ("duplicate image", "near-duplicate image")
_LEAKS = ("leaked image", "leaked near-duplicate")

FAULTS = (
    Fault("image without mask", "pairing", "1 file", ("image without mask",), _remove("mask")),
    Fault("mask without image", "pairing", "1 file", ("mask without image",), _remove("image")),
    Fault("two images of a name", "pairing", "png and jpg", ("double name",), _double, alone=True),
    Fault("image is its mask", "pairing", "copied file", ("image as mask",), _own_mask),
    Fault("one mask for two images", "pairing", "copied file", ("shared mask",), _share),
    Fault("value off by one", "values", "1 mask", (*_VALUES, "absent class"), _edit_mask(_near)),
    Fault("other scale of values", "values", "1 mask", (*_VALUES, "absent class"), _edit_mask(_ones)),
    Fault("resampled", "values", "half size and back", _VALUES, _edit_mask(_resample)),
    Fault("JPEG among PNG", "values", "quality 90", ("JPEG mask", *_VALUES), _jpeg_mask),
    Fault("truncated", "unreadable", "half of the file", ("unreadable file",), _write(lambda b: b[: len(b) // 2])),
    Fault("not an image", "unreadable", "text", ("unreadable file",), _write(lambda b: b"no image at all")),
    Fault("empty file", "unreadable", "0 bytes", ("unreadable file",), _write(lambda b: b"")),
    Fault("other size", "unreadable", "90%", ("size mismatch",), _edit_image(lambda im: im.resize((115, 115)))),
    Fault("16 bit among 8 bit", "unreadable", "1 image", ("odd depth", "odd channels"),
          _edit_image(lambda im: Image.fromarray(np.asarray(im.convert("L")).astype(np.uint16) * 257))),
    Fault("same image, two masks", "duplicates", "3 px", ("contradicting masks",), _contradict),
    Fault("copy", "duplicates", "equal", _COPIES, _copy(lambda im: im, None)),
    Fault("recompressed copy", "duplicates", "JPEG 50", _COPIES, _copy(_recompress, None)),
    Fault("resized copy", "duplicates", "70% and back", _COPIES,
          _copy(lambda im: im.resize((90, 90), Image.Resampling.LANCZOS).resize((SIDE_PX, SIDE_PX)), None)),
    Fault("brightened copy", "duplicates", "1.3", _COPIES,
          _copy(lambda im: ImageEnhance.Brightness(im).enhance(1.3), None)),
    Fault("flipped copy", "duplicates", "left-right", _COPIES, _copy(ImageOps.mirror, None, flip=True)),
    Fault("copy in two splits", "leaks", "equal", _LEAKS, _copy(lambda im: im, "train")),
    Fault("changed copy in two splits", "leaks", "JPEG 50, 1.2", _LEAKS,
          _copy(lambda im: _recompress(ImageEnhance.Brightness(im).enhance(1.2)), "train")),
    Fault("flipped copy in two splits", "leaks", "left-right", _LEAKS, _copy(ImageOps.mirror, "train", flip=True)),
    Fault("shifted mask", "mask fit", "5% of the side", _FIT, _edit_mask(_shift)),
    Fault("flipped mask", "mask fit", "left-right", _FIT, _edit_mask(lambda m, f: m[:, ::-1])),
    Fault("upside-down mask", "mask fit", "up-down", _FIT, _edit_mask(lambda m, f: m[::-1])),
    Fault("exchanged masks", "mask fit", "2 masks", _FIT, _swap),
    Fault("inverted mask", "mask fit", "2 classes", _FIT, _edit_mask(_invert)),
    Fault("emptied mask", "empty", "1 mask", ("missing objects", "empty mask"), _edit_mask(lambda m, f: m * 0)),
    Fault("full mask", "empty", "1 mask", ("full mask",),
          _edit_mask(lambda m, f: m * 0 + f.encode(np.ones((1, 1), np.uint8))[0, 0])),
    Fault("specks", "others", "25 px", ("specks",), _edit_mask(_specks)),
    Fault("constant image", "others", "grey", ("constant image",),
          _edit_image(lambda im: Image.new("RGB", im.size, (120, 120, 120)))),
    Fault("dark image", "others", "0.15", ("dark image",),
          _edit_image(lambda im: ImageEnhance.Brightness(im).enhance(0.15))),
    Fault("blurred image", "others", "sigma 4", ("blurred image",),
          _edit_image(lambda im: Image.fromarray(ndimage.gaussian_filter(np.asarray(im), (4, 4, 0))))),
    Fault("turned by EXIF", "others", "180 degrees", ("turned image",), _turn_exif),
    Fault("class in one split", "others", "2 masks of test",
          ("class missing in training", "class without score", *_VALUES), _missing_class, alone=True),
    Fault("darker test split", "others", "0.6", ("domain shift",), _shift_domain),
)  # fmt: skip

# A fault makes these findings too, and rightly.
_CONSEQUENCES = {
    "image is its mask": (
        "odd channels",
        "odd depth",
        "dark image",
        "constant image",
        "light image",
        "blurred image",
        *_FIT,
    ),
    "one mask for two images": _FIT,
    "constant image": ("blurred image", *_FIT),
    "blurred image": _FIT,
    "dark image": ("blurred image", *_FIT),
    "turned by EXIF": _FIT,
    "same image, two masks": _FIT,
    "darker test split": ("dark image", "blurred image"),
    "16 bit among 8 bit": ("odd channels",),
    "resampled": _FIT,
    "specks": ("pin-holes",),
}


def examine(root: Path, cache: Path) -> list[Finding]:
    settings = make_settings(changes={"data.folder": str(root), "data.size": SIDE_PX})
    inspection, findings = inspect_folder(settings, "cpu", cache, Reporter(Console(quiet=True)))
    return [*findings, *(run_checks(inspection, (*QUICK, *THOROUGH)) if inspection else [])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folders", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="Stop after this time.")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    drawn, found = Counter[str](), Counter[str]()
    alarms, clean_alarms, clean_errors, clean_most = Counter[str](), Counter[str](), 0, 0
    clean_folders, begin, waiting = 0, time.perf_counter(), list[Fault]()
    number = 0
    for number in range(args.folders):
        if time.perf_counter() - begin > args.seconds:
            break
        rng = np.random.default_rng((args.seed, number))
        with tempfile.TemporaryDirectory() as temporary:
            folder = Folder(Path(temporary) / "data", FAMILIES[number // 4 % 4], rng)
            faults: list[tuple[Fault, Sequence[Path]]] = []
            if number % 4:
                while len(faults) < 3:
                    if not waiting:  # all kinds equally often
                        waiting = list(FAULTS)
                        np.random.default_rng((args.seed, number, 1)).shuffle(waiting)
                    if faults and (waiting[-1].alone or faults[0][0].alone):
                        break
                    fault = waiting.pop()
                    faults.append((fault, fault.draw(folder)))
            findings = examine(folder.root, Path(temporary) / "cache")
            if args.verbose:
                print(number, folder.family, [fault.kind for fault, _files in faults])
        explained: set[int] = set()
        for fault, files in faults:
            drawn[fault.kind] += 1
            names = {path.name for path in files} if files else None
            right = [
                i
                for i, finding in enumerate(findings)
                if names is None or any(n in finding.message or n in {p.name for p in finding.files} for n in names)
            ]
            hits = [i for i in right if findings[i].check in fault.checks]
            found[fault.kind] += bool(hits)
            explained |= {i for i in right if findings[i].check in (*fault.checks, *_CONSEQUENCES.get(fault.kind, ()))}
            if fault.group == "values":
                explained |= {i for i in right if findings[i].check in _FIT}
                explained |= {i for i, f in enumerate(findings) if f.check in _NEW_CLASS}
            if args.verbose and not hits:
                print("   missed:", fault.kind, [path.name for path in files])
        rest = [f for i, f in enumerate(findings) if i not in explained and f.grade != "note"]
        alarms.update(f.check for f in rest)
        if not faults:
            clean_folders += 1
            clean_alarms.update(f.check for f in rest)
            clean_errors += sum(f.grade == "error" for f in rest)
            clean_most = max(clean_most, len(rest))
        for finding in rest if args.verbose else ():
            print(
                "   alarm:", finding.grade, finding.check, [p.name for p in finding.files][:2], dict(finding.evidence)
            )
    folders = number + 1
    print(f"{folders} folders, {clean_folders} of them clean; {time.perf_counter() - begin:.0f} s\n")
    print("| group | fault | strength | drawn | found | recall |\n|---|---|---|---|---|---|")
    for fault in FAULTS:
        n = drawn[fault.kind]
        recall = f"{found[fault.kind] / n:.2f}" if n else ""
        print(f"| {fault.group} | {fault.kind} | {fault.strength} | {n} | {found[fault.kind]} | {recall} |")
    for group in dict.fromkeys(fault.group for fault in FAULTS):
        kinds = [fault.kind for fault in FAULTS if fault.group == group]
        all_drawn, all_found = sum(drawn[kind] for kind in kinds), sum(found[kind] for kind in kinds)
        print(f"| **{group}** | all | | {all_drawn} | {all_found} | {all_found / max(1, all_drawn):.3f} |")
    print(f"\nfalse alarms (errors and warnings), all folders: {dict(alarms)}")
    print(f"on clean folders: {clean_errors} errors, at most {clean_most} warnings a folder: {dict(clean_alarms)}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"drawn": drawn, "found": found, "alarms": alarms, "folders": folders}))


if __name__ == "__main__":
    main()
