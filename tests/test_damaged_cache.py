"""Whatever happens to the files of a cache, the data set is the one that it was, and what was damaged is reported.

Of named sets: test_named.py; of encoder weights: test_encoders.py and test_efficientnet_lite.py.
"""

import io
import os
import random
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from support.discs import make_discs, read_store
from ubend.core.progress import Reporter
from ubend.dataset import store
from ubend.dataset.dataset import FolderScan, find_folder, scan_folder
from ubend.dataset.scan import LABEL_SCAN_SUFFIX, read_headers
from ubend.dataset.store import Store, hash_pairs, open_store
from ubend.io import file_cache
from ubend.io.file_cache import FILE_CACHE_SUFFIX, FileCache
from ubend.io.images import Sizing
from ubend.labels.class_table import make_label_map
from ubend.layouts.folder import read_folder
from ubend.tasks.user_settings import read_user_settings


def open_discs(root: Path, cache: Path, told: list[str]) -> Store:
    pairs = read_folder(root).pairs
    shapes = [header.size_hw for header in read_headers(pairs)]
    labels = make_label_map([0, 255])
    return open_store(pairs, shapes, Sizing(32, True, 3), labels, hash_pairs(pairs), cache, log=told.append)


@pytest.mark.parametrize("name", ["images.bin", "masks.bin", "index.npz", "store.json"])
def test_a_damaged_store_is_built_again(name: str, tmp_path: Path) -> None:
    make_discs(tmp_path / "discs", 4)
    told: list[str] = []
    first = read_store(open_discs(tmp_path / "discs", tmp_path / "cache", told), np.arange(4), (32, 40))
    (folder,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    whole = (folder / name).read_bytes()
    chosen = random.Random(name)
    damages = [b"", whole[: len(whole) // 2], bytes(len(whole)), whole + b"\0", b"[" * 50_000, None]
    for _turn in range(6):
        flipped = bytearray(whole)
        flipped[chosen.randrange(len(whole))] ^= 1 << chosen.randrange(8)
        damages.append(bytes(flipped))
    for damage in damages:
        if damage is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(damage)
        told.clear()
        again = read_store(open_discs(tmp_path / "discs", tmp_path / "cache", told), np.arange(4), (32, 40))
        for one, other in zip(first, again, strict=True):
            np.testing.assert_array_equal(one, other)
        assert len(told) == (0 if damage is None and name == "store.json" else 1)  # without it there is no store


def test_damaged_known_files(tmp_path: Path) -> None:
    """A flipped digit of a digest or a header is never believed."""
    (tmp_path / "a").write_bytes(b"a")
    known = FileCache(tmp_path / "cache", tmp_path)
    file = known.look(tmp_path / "a")
    file.digest, file.looked_ns = "0123", file.looked_ns + 10**11
    known.save()
    (place,) = (tmp_path / "cache").iterdir()
    text = place.read_text()
    assert FileCache(tmp_path / "cache", tmp_path).look(tmp_path / "a").digest == "0123"
    for damage in (text.replace("0123", "0124"), text[:-3], "", "[" * 50_000, text.replace("\n", "")):
        place.write_text(damage)
        assert FileCache(tmp_path / "cache", tmp_path).look(tmp_path / "a").digest is None


@pytest.mark.parametrize("kind", [LABEL_SCAN_SUFFIX, FILE_CACHE_SUFFIX])
def test_damaged_lists(kind: str, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is made again, which is reported once; what is read of the folder stays."""
    for path in discs.rglob("*.png"):
        os.utime(path, (10**9, 10**9))
    monkeypatch.setattr(file_cache, "_TICK_NS", -(10**12))  # else files this young are not remembered
    settings = read_user_settings(discs).settings
    folder, told = find_folder(settings), io.StringIO()

    def survey() -> FolderScan:
        told.truncate(0)
        return scan_folder(folder, settings, tmp_path / "cache", Reporter(Console(file=told, width=1000)))

    first = survey()
    (place,) = (path for path in (tmp_path / "cache").iterdir() if path.name.endswith(kind))
    whole, chosen = place.read_bytes(), random.Random(kind)
    for damage in range(12):
        spoilt = bytearray(whole[: (0, 1, len(whole) // 2, len(whole) - 1)[damage]] if damage < 4 else whole)
        if damage >= 4:
            spoilt[chosen.randrange(len(whole) // 2)] ^= 1 << chosen.randrange(8)
        place.write_bytes(spoilt)
        np.testing.assert_equal(asdict(survey()), asdict(first))
        lines = told.getvalue().count(place.name)
        assert lines == 1 or (lines == 0 and kind == LABEL_SCAN_SUFFIX and damage >= 4), damage  # zip's idle bytes
        survey()
        assert place.name not in told.getvalue()


def test_a_store_that_nobody_touched_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its check sums are made when it is built, and again only if a file was changed or copied."""
    make_discs(tmp_path / "discs", 4)
    calls: list[Path] = []
    check = store._check_sums
    monkeypatch.setattr(store, "_check_sums", lambda folder: calls.append(folder) or check(folder))
    open_discs(tmp_path / "discs", tmp_path / "cache", [])
    assert len(calls) == 1
    found = open_discs(tmp_path / "discs", tmp_path / "cache", [])
    assert len(calls) == 1
    (found.folder / "masks.bin").touch()
    open_discs(tmp_path / "discs", tmp_path / "cache", [])
    assert len(calls) == 2
