"""Random trees of folders give exactly their pairs or an error, never other pairs."""

import tempfile
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from support.files import touch
from support.tally import Tally
from ubend.core.errors import DataError
from ubend.labels.mask_files import LayeredMask
from ubend.layouts.folder import ReadOptions, read_folder

NAMES = st.text(st.sampled_from("abXY019 _-.ảß"), min_size=1, max_size=6).filter(
    lambda name: name.strip() == name and name[0] not in ".-" and name[-1] != "."
)
SIDES = st.sampled_from([("images", "masks"), ("Img", "GT"), ("x", "y"), ("photo", "Ground Truth"), ("input", "label")])
AFFIXES = st.sampled_from(["{}", "{}_mask", "mask_{}", "{}_GT", "{} seg", "{}_cp_masks", "{}-label"])
JUNK = st.lists(
    st.sampled_from([".DS_Store", "._a.png", "Thumbs.db", "notes.txt", "a.json", "labels.csv"]), unique=True
)


@pytest.mark.understood(at_least=0.42)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.sampled_from(["", "p1", "P 2", "deep/er"]), NAMES), min_size=1, max_size=6, unique=True),
    SIDES,
    AFFIXES,
    st.booleans(),
    st.booleans(),
    JUNK,
    st.sets(st.integers(0, 11), max_size=4),
    st.booleans(),
)
def test_random_trees(
    tally: Tally,
    stems: list[tuple[str, str]],
    sides: tuple[str, str],
    affix: str,
    folder_first: bool,
    taken_apart: bool,
    junk: list[str],
    lost: set[int],
    skip_bad: bool,
) -> None:
    """Exactly the truth's pairs or an error; with --skip-bad nothing but pairs of the truth."""
    names = {stem for _folder, stem in stems}
    # the mask 0_0.png is that of 0.png by its name, where those of both are lost in part; so is masks/0.png that of
    # images/p1/0.png, where images/0.png and masks/p1/0.png are lost
    assume(not lost or not any(one != other and one in other for one in names for other in names))
    assume(not lost or len(names) == len(stems))
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        truth = {}
        for number, (folder, stem) in enumerate(stems):
            above = [f"{folder}/{side}" if folder_first and folder else f"{side}/{folder}" for side in sides]
            image = root / above[0] / f"{unicodedata.normalize('NFD', stem) if taken_apart else stem}.png"
            mask = root / above[1] / f"{affix.format(stem)}.png"
            if 2 * number not in lost:
                touch(image)
            if 2 * number + 1 not in lost:
                touch(mask)
            truth[image] = mask
        touch(*(root / side / name for side in sides for name in junk))
        try:
            found = {pair.image: pair.mask.path for pair in read_folder(root, ReadOptions(skip_bad=skip_bad)).pairs}
        except DataError:
            tally.add(False)
            return
        tally.add(True)
        if skip_bad:
            assert found.items() <= truth.items()
        else:
            assert found == {image: mask for image, mask in truth.items() if image.exists() or mask.exists()}


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 9999), min_size=2, max_size=8, unique=True),
    st.sampled_from(["{:04d}", "case_{}", "IMG{:05d}", "{}_b", "Ảnh {}"]),
    SIDES,
    AFFIXES,
    st.sampled_from(["", "p1/"]),
)
def test_usual_names_are_always_understood(
    numbers: list[int], pattern: str, sides: tuple[str, str], affix: str, folder: str
) -> None:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        truth = {}
        for number in numbers:
            stem = pattern.format(number)
            image = root / sides[0] / f"{folder}{stem}.jpg"
            truth[image] = root / sides[1] / f"{folder}{affix.format(stem)}.png"
            touch(image, truth[image])
        assert {pair.image: pair.mask.path for pair in read_folder(root).pairs} == truth


@pytest.mark.understood(at_least=0.45)
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(NAMES, min_size=1, max_size=5, unique=True), st.sampled_from(["{}_mask", "mask_{}", "{}_gt"]))
def test_random_flat_folders(tally: Tally, stems: list[str], affix: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        truth = {root / f"{stem}.jpg": root / f"{affix.format(stem)}.png" for stem in stems}
        for image, mask in truth.items():
            touch(image, mask)
        try:
            found = {pair.image: pair.mask.path for pair in read_folder(root).pairs}
        except DataError:
            tally.add(False)
            return
        tally.add(True)
        assert found == truth


@pytest.mark.understood(at_least=0.2)
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(NAMES, st.integers(1, 3)), min_size=1, max_size=5, unique_by=lambda one: one[0]),
    st.sampled_from(["masks/{}_{}.png", "masks/{}/{}.png", "masks/{}_obj{}.png", "masks/{1}/{0}.png"]),
    st.booleans(),
    st.sets(st.integers(0, 4), max_size=1),
)
def test_several_masks_for_each_image(
    tally: Tally, stems: list[tuple[str, int]], mask: str, words: bool, lost: set[int]
) -> None:
    """Objects by number, classes by word: the layers are those of the truth, or it is an error."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        truth = {}
        for number, (stem, count) in enumerate(stems):
            labels = ["car", "road", "sky"][:count] if words else [str(i) for i in range(1, count + 1)]
            masks = {root / mask.format(stem, label) for label in labels}
            touch(*masks)
            if number not in lost:
                touch(root / f"images/{stem}.jpg")
            truth[root / f"images/{stem}.jpg"] = masks
        try:
            found = read_folder(root)
        except DataError:
            tally.add(False)
            return
        tally.add(True)
        assert {pair.image: set(pair.mask.files) for pair in found.pairs} == truth
        for pair in found.pairs:
            if isinstance(pair.mask, LayeredMask):
                assert len({layer.value for layer in pair.mask.layers}) == (len(pair.mask.layers) if words else 1)
