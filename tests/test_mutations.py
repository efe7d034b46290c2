"""Folders spoilt at random are read right or refused by name: no traceback, no silently wrong pair.

What is read are the pairs of the good folder, as they were, less those that are named and those of spoilt files.

`UBEND_MUTATIONS=2000 python -m pytest tests/test_mutations.py` spoils so many files (minutes).
"""

import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from support.folders import COUNT, IMAGES, PARTS, Maker, Understood, read_class_maps
from support.mutations import BASES, TEXT_SUFFIXES, Spoilt, spoil
from ubend.cli.app import main
from ubend.layouts.naming import IMAGE_SUFFIXES

FILES = int(os.environ.get("UBEND_MUTATIONS", 500))  # that are spoilt, at least
FIT_EVERY = 5  # of so many folders one is also trained on
MAX_SECONDS = 60  # for one folder
TINY: list[object] = ["--size", 32, "--width", 2, "--epochs", 1, "--batch", 4, "--device", "cpu"]

# What is the same in the names of an image and of its masks, without the folders that differ.
SIDES = re.compile("(images|masks|labels)/")
KEY = re.compile(r"(?<!\w)(?:train|val|test)/[^\d\n/]*\d|cell_\d|\d\dab\w{3}")

Invoke = Callable[..., Result]
Pairs = dict[Path, tuple[str, np.ndarray[Any, Any], np.ndarray[Any, Any]]]  # image -> split, class names, pixels


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Invoke]:
    """The command line, in the folder, with a cache of its own, and no more than a minute."""
    monkeypatch.setenv("UBEND_CACHE", str(tmp_path / "cache"))

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError

    def call(*words: object, flags: tuple[tuple[str, str], ...]) -> Result:
        monkeypatch.chdir(tmp_path / "set")
        signal.alarm(MAX_SECONDS)
        try:
            told = [word for key, value in flags for word in (f"--{key}", value)]
            return CliRunner().invoke(main, [*map(str, words), *told])
        finally:
            signal.alarm(0)

    old = signal.signal(signal.SIGALRM, stop)
    yield call
    signal.signal(signal.SIGALRM, old)


def seeds() -> list[range]:
    """About 130 folders a test: enough for a share of them that are understood."""
    folders = FILES * 4 // 7  # 1.76 files are spoilt in a folder, on the average
    tests = max(1, round(folders / 130))
    return [range(folders * n // tests, folders * (n + 1) // tests) for n in range(tests)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pairs]:
    """The pairs of each good folder; their paths are relative to it."""
    found = {}
    for name, base in BASES.items():
        root = tmp_path_factory.mktemp(name)
        base.write(Maker(root, base.binary))
        flags = {key: str(root / value) for key, value in base.flags}
        found[name] = pairs_below(root, read_class_maps(root, root / ".cache", flags))
    return found


def pairs_below(root: Path, found: Understood) -> Pairs:
    names = np.array([*found.classes, *["no class"] * 255])
    return {
        path.relative_to(root): (part, names[index], found.images[path]) for path, (part, index) in found.maps.items()
    }


@pytest.mark.parametrize("name", BASES)
def test_good_folders_are_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = BASES[name]
    make = Maker(tmp_path / "set", base.binary)
    base.write(make)
    monkeypatch.chdir(make.root)
    found = read_class_maps(make.root, tmp_path / "cache", dict(base.flags))
    assert wrong_pairs(Spoilt(name, base, make), found) == []
    assert len(found.maps) == COUNT


@pytest.mark.slow
@pytest.mark.parametrize("some", seeds(), ids=lambda some: f"{some.start}-{some.stop - 1}")
def test_spoilt_folders(some: range, tmp_path: Path, invoke: Invoke, whole: dict[str, Pairs]) -> None:
    """A few are read as they are, most with --skip-bad."""
    problems, understood = [], 0
    for seed in some:
        root = tmp_path / "set"
        spoilt = spoil(root, seed)
        commands = {"data": ["data"], "skipping": ["data", "--skip-bad"]}
        if seed % FIT_EVERY == 0:
            commands["fit"] = ["fit", *TINY]
        for name, words in commands.items():
            out = tmp_path / name
            result = invoke(*words, root, "--out", out, flags=spoilt.base.flags)
            found = judge(spoilt, result, out, whole, skip_bad=name == "skipping")
            problems += [f"{name}, seed {seed} ({spoilt.describe()}): {problem}" for problem in found]
            understood += name == "skipping" and result.exit_code == 0
        for left in tmp_path.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    assert not problems, "\n" + "\n".join(problems)
    assert understood >= 0.58 * len(some)  # measured: 69%


def judge(spoilt: Spoilt, result: Result, out: Path, whole: dict[str, Pairs], skip_bad: bool) -> list[str]:
    """What is wrong with the outcome of a command."""
    if isinstance(result.exception, TimeoutError):
        return [f"not done after {MAX_SECONDS} s"]
    if not isinstance(result.exception, SystemExit | None):
        return [f"traceback: {result.exception!r}"]
    problems, cache = [], out.parent / "cache"
    if leftovers := [path.name for path in cache.rglob(".*") if not path.name.endswith(".lock")]:
        problems.append(f"left in the cache: {leftovers}")
    if result.exit_code == 0:
        found = read_class_maps(spoilt.make.root, cache, {**dict(spoilt.base.flags), "skip_bad": skip_bad or None})
        lost_labels = skip_bad and any(kind in spoilt.base.unknowable_skipping for kind, _paths in spoilt.done)
        told = result.output + "".join(path.read_text("utf-8", "replace") for path in out.glob("skipped.csv"))
        problems += wrong_rest(spoilt, whole[spoilt.name], found, told)
        return problems if lost_labels else problems + wrong_pairs(spoilt, found)
    said = result.stderr
    if result.exit_code != 2 or "error: " not in said:
        problems.append(f"exit code {result.exit_code}: {result.output}")
    if not skip_bad and not any(name in said for name in spoilt.names):
        problems.append(f"no spoilt file is named: {said}")
    if out.exists():
        problems.append("an error, but a folder was made")
    return problems


def wrong_rest(spoilt: Spoilt, whole: Pairs, found: Understood, told: str) -> list[str]:
    """Pairs that are left out without a word, that are not as they were though nobody touched them, or that are new."""
    pairs = pairs_below(spoilt.make.root, found)
    touched = {path.relative_to(spoilt.make.root) for _kind, paths in spoilt.done for path in paths}
    keys = {path: keys_in(path.as_posix()) for path in {*whole, *touched}}
    concerned = set[str]().union(*(keys[path] for path in touched))
    alone = all(keys[path] or path.suffix not in TEXT_SUFFIXES for path in touched)  # no list or table of all
    renamed = set[str]().union(*(keys_in(path.as_posix()) for path in pairs.keys() - whole.keys()))
    untold = traces(spoilt.make.root) - renamed - keys_in(told)
    lost = [path for path in whole.keys() - pairs.keys() if f"\n{path.parent.as_posix()}," not in told]  # as a folder
    problems = [f"{path} is left out without a word" for path in lost if keys[path] & untold]
    problems += [f"{path} is new" for path in pairs.keys() - whole.keys() - touched]
    stated = {whole[path][0] for path in pairs.keys() & whole.keys()}  # else drawn from train
    for path in pairs.keys() & whole.keys():
        if not keys[path] & concerned:
            (part, classes, pixels), (old_part, old_classes, old_pixels) = pairs[path], whole[path]
            if not np.array_equal(pixels, old_pixels):
                problems.append(f"{path}: other pixels")
            if alone and not np.array_equal(classes, old_classes):
                problems.append(f"{path}: another mask")
            if alone and spoilt.base.splits and part != old_part and part in stated:
                problems.append(f"{path}: in the split {part}")
    return problems


def traces(root: Path) -> set[str]:
    """Images of which a folder still has a file that is called like an image, a mask or labels, or a line of a list."""
    files = [path for path in root.rglob("*") if not path.is_dir()]
    lists = [path.read_text("utf-8", "replace") for path in files if path.suffix in TEXT_SUFFIXES and path.is_file()]
    known = {*IMAGE_SUFFIXES, ".npy", ".gif"}
    names = [path.as_posix() for path in files if path.suffix.lower() in known or "labels" in path.parts]
    return keys_in("\n".join([*names, *lists]))


def keys_in(text: str) -> set[str]:
    return set(KEY.findall(SIDES.sub("", text.lower())))


def wrong_pairs(spoilt: Spoilt, found: Understood) -> list[str]:
    """Pairs whose mask, image or part is another's. Classes may have other names, but one each."""
    problems = []
    stated = {
        PARTS[number] for path, number in spoilt.make.numbers.items() if path in found.maps
    }  # else drawn from train
    class_of: dict[int, int] = {}
    renamed = [paths for kind, paths in spoilt.done if kind == "rename"]
    taken = set[str]().union(*(keys_in(new.as_posix()) - keys_in(old.as_posix()) for old, new in renamed))
    for path, (part, index) in found.maps.items():
        if keys_in(path.as_posix()) & taken:  # another's mask has its name now: nobody can know
            continue
        number = spoilt.make.numbers.get(path)
        content = likeness(found.images[path])
        if number is None or (not spoilt.touched(path) and content[number] < 0.9):
            number = int(np.argmax(content))
        if not spoilt.touched(path) and content[number] < 0.9:
            problems.append(f"{path.name}: the image is another")
        truth = spoilt.make.maps[number]
        if spoilt.base.splits and part != PARTS[number] and part in stated:
            problems.append(f"{path.name}: in the {part} split")
        if index.shape != truth.shape:
            problems.append(f"{path.name}: a mask of shape {index.shape}")
        elif spoilt.knowable:
            pairs = {(int(a), int(b)) for a, b in np.unique(np.stack([truth, index]).reshape(2, -1), axis=1).T}
            if any(class_of.setdefault(a, b) != b for a, b in pairs):
                problems.append(f"{path.name}: {np.mean(truth != index):.1%} of its class map are wrong")
    return problems


def likeness(pixels: np.ndarray[Any, Any]) -> list[float]:
    """Correlation of a stored image with each of the truth."""
    grey = pixels.astype(float).mean(axis=2)
    if grey.shape != IMAGES[0].shape[:2] or not np.ptp(grey):
        return [0.0] * COUNT
    return [float(np.corrcoef(grey.reshape(-1), other.mean(axis=2).reshape(-1))[0, 1]) for other in IMAGES]
