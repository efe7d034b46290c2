"""Images of one patient are kept in one split, or it is reported that they are not; folders of systems are no data."""

import shutil
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from support.annotated import WRITERS
from ubend.dataset.splits import split_pairs
from ubend.labels.mask_files import FileMask
from ubend.layouts.folder import ReadOptions, read_folder, read_pairs
from ubend.layouts.groups import find_groups
from ubend.layouts.pairs import Folder, Pair, SplitName
from ubend.portable.image_paths import list_images

SYSTEM = ("@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found", "__MACOSX", ".Trash-1000", "System Volume Information",
          "@Recycle", "#snapshot", ".@__thumb", ".ipynb_checkpoints", "FOUND.000")  # fmt: skip


def make(names: list[str], part: SplitName | None = None) -> list[Pair]:
    root = Path("/set")
    return [Pair(name, root / f"{name}.png", FileMask(root / f"{name}_mask.png"), part, None) for name in names]


def groups(names: list[str], part: SplitName | None = None) -> tuple[list[str | None], bool]:
    """The groups, and whether anything is reported."""
    pairs, line = find_groups(make(names, part), Path("/set"))
    return [pair.group for pair in pairs], line is not None


patients = st.lists(st.integers(1, 6), min_size=5, max_size=12)


@given(
    patients, st.sampled_from(["patient_{:02}", "TCGA_CS_{}_19960909", "P{}", "{}"]), st.booleans(), st.integers(0, 9)
)
@settings(max_examples=60)
def test_no_patient_lies_in_two_splits(sizes: list[int], name: str, inside: bool, seed: int) -> None:
    """However many images each has."""
    folders = [
        name.format(4941 + number) + "/images" * inside for number, size in enumerate(sizes) for _ in range(size)
    ]
    pairs, line = find_groups(make([f"{folder}/{i}" for i, folder in enumerate(folders)]), Path("/set"))
    assert (line is not None) == (max(sizes) > 1)
    names = [pair.name for pair in pairs]
    split = split_pairs(names, [None] * len(names), [p.group for p in pairs], np.arange(len(names)), seed, 0.2, 0.2)
    lies = {(folder, part) for folder, part in zip(folders, split.splits, strict=True)}
    assert len(lies) == len(sizes)


@given(
    patients,
    st.sampled_from(
        ["patient{:02}_slice{}", "P{}-{:02}", "TCGA_CS_{}_19960909_{}", "video{}_frame{:04}", "bệnh_nhân_{}_{}"]
    ),
    st.integers(0, 9),
    st.randoms(),
)
@settings(max_examples=60)
def test_no_patient_of_file_names_lies_in_two_splits(sizes: list[int], name: str, seed: int, random: Random) -> None:
    """However many images each has."""
    keys = [(4941 + number, image) for number, size in enumerate(sizes) for image in range(size)]
    random.shuffle(keys)
    names = [name.format(*key) for key in keys]
    pairs, line = find_groups(make(names), Path("/set"))
    assert (line is not None) == (max(sizes) > 1)
    split = split_pairs(names, [None] * len(names), [p.group for p in pairs], np.arange(len(names)), seed, 0.2, 0.2)
    lies = {(key[0], part) for key, part in zip(keys, split.splits, strict=True)}
    assert len(lies) == len(sizes)


@given(
    st.sampled_from(
        ["img_{0:04}", "{1}_{0:06}", "Abyssinian_{0}", "IMG_202103{2:02}_{0:06}", "class{1}_{0}", "2007_{0:06}",
         "cju{1}qkwl35p{0}", "{0:04x}-{1}", "case_{0}_0000", "grade_{1}_{0:03}", "tile_{1}_{0}"]
    ),
    st.integers(5, 30),
)  # fmt: skip
def test_numbered_images_are_no_groups(name: str, count: int) -> None:
    assert groups([name.format(n, n % 5, 10 + n % 5) for n in range(count)]) == ([None] * count, False)


def test_letters_and_few_patients_in_file_names() -> None:
    names = [f"case{letter}_{n:03}" for letter in "ABCDE" for n in range(3)]
    assert groups(names) == ([name[:5] for name in names], True)
    names = [f"slice{n}_patient{p}" for p in range(5) for n in range(3)]
    assert groups(names) == ([name.partition("_")[2] for name in names], True)
    assert groups([f"patient{p}_{n}" for p in range(2) for n in range(4)]) == ([None] * 8, True)
    given_split = [find_groups(make([f"p{p}_{n}" for p in range(5) for n in range(3)], part), Path("/set"))
                   for part in ("train", "val")]  # fmt: skip
    assert all(pair.group for pairs, _line in given_split for pair in pairs)


def test_copies_lie_with_their_originals() -> None:
    stems = [f"{stem}{end}" for stem in "abcdef" for end in ("", "_flip", "_rot90", "_rot180")]
    assert groups(stems) == ([stem[0] for stem in stems], True)
    stems = [f"img_{n:03}{end}" for n in range(6) for end in ("", "_rot90", "_rot180")]
    assert groups(stems) == ([stem[:7] for stem in stems], True)
    stems = [f"patient{n}_{i}{end}" for n in range(5) for i in range(2) for end in ("", "_flip")]
    assert groups(stems) == ([stem[:8] for stem in stems], True)
    assert groups([f"{kind}/{n}" for kind in ("benign", "malignant") for n in range(8)])[0] == [None] * 16
    assert groups(["a", "a_1", "a_2", "b", "b_1", "c", "c_left", "d"])[0] == [None] * 8


def test_a_file_of_groups_alone(tmp_path: Path) -> None:
    """It leaves the split to the folder, and takes groups away where its cells are empty."""
    write(tmp_path, *(f"{side}/p{n}_{i}.png" for n in range(5) for i in range(2) for side in ("images", "masks")))
    assert {pair.group for pair in read_folder(tmp_path).pairs} == {f"p{n}" for n in range(5)}
    lines = [f"p{n}_{i},{'a' * (n == 0)}" for n in range(5) for i in range(2)]
    (tmp_path / "groups.csv").write_text("\n".join(["file,group", *lines]))
    found = read_folder(tmp_path, ReadOptions(tmp_path / "groups.csv"))
    assert {pair.group for pair in found.pairs} == {"a", None}
    assert {pair.split for pair in found.pairs} == {None}


def test_the_folder_of_the_patient_not_of_the_visit_or_the_class() -> None:
    names = [f"{kind}/case{n}/visit_{v}/{i}" for n, kind in enumerate("aabbab") for v in (1, 2) for i in range(2)]
    assert groups(names) == (["/".join(name.split("/")[:2]) for name in names], True)
    assert (
        groups([f"{n:03}.Albatross_{word}/{i}" for n, word in enumerate("abcdef") for i in range(3)])[0] == [None] * 18
    )
    assert groups([f"{kind}/{i}" for kind in ("benign", "malignant") for i in range(4)]) == ([None] * 8, True)
    assert groups([f"images/{i}" for i in range(8)]) == ([None] * 8, False)
    assert groups([f"stage1/{i:04x}/images/{i:04x}" for i in range(8)]) == ([None] * 8, False)  # one image each
    assert groups([f"{n}/{i}" for n in range(5) for i in range(2)], "val")[0][0] == "val/0"
    assert groups([f"p{n}/{i}" for n in range(2) for i in range(4)]) == ([None] * 8, True)


@pytest.mark.parametrize("name", ["patient{}_slice{}", "patient_{}/{}"])
@pytest.mark.parametrize("count", [3, 4])
def test_three_patients_are_a_split(name: str, count: int) -> None:
    """As few as that are kept apart, and it is reported, also where their images are like one another's."""
    names = [name.format(p, n) for p in range(count) for n in range(4)]
    pairs, line = find_groups(make(names), Path("/set"))
    assert line is not None
    for duplicates in (np.arange(len(names)), np.arange(len(names)) % 4):  # the first slice of each, ...
        split = split_pairs(names, [None] * len(names), [pair.group for pair in pairs], duplicates, 0, 0.2, 0.2)
        assert len({(n // 4, part) for n, part in enumerate(split.splits)}) == count
        assert {*split.splits} == {"train", "val", "test"}


def test_patients_that_leave_nothing_to_cut_are_no_groups() -> None:
    """One patient is all there is to train on; validation images have to come out of it."""
    names = ["p0_0", "p0_1", "p0_2", "p1_0", "p1_1", "p2_0", "p2_1"]
    given_parts: list[SplitName | None] = ["train"] * 3 + ["test"] * 4
    pairs = [pair for name, part in zip(names, given_parts, strict=True) for pair in make([name], part)]
    found, _line = find_groups(pairs, Path("/set"))
    split = split_pairs(names, given_parts, [pair.group for pair in found], np.arange(7), 0, 0.2, 0.2)
    assert {*split.splits[:3]} == {"train", "val"}


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(root / name)


def test_a_split_file_goes_before_folders(tmp_path: Path) -> None:
    write(tmp_path, *(f"p{n}/{side}/{i}.png" for n in range(5) for i in range(2) for side in ("images", "masks")))
    assert {pair.group for pair in read_folder(tmp_path).pairs} == {f"p{n}" for n in range(5)}
    lines = [f"p{n}/{i},train,{'ab'[i]}" for n in range(5) for i in range(2)]
    (tmp_path / "split.csv").write_text("\n".join(["file,split,group", *lines]))
    found = read_folder(tmp_path, ReadOptions(tmp_path / "split.csv"))
    assert {pair.group for pair in found.pairs} == {"a", "b"}


def facts(folder: Folder) -> list[tuple[str, str]]:
    return [(pair.name, str(pair.mask)) for pair in folder.pairs]


def spoil(root: Path, name: str) -> int:
    """A copy of every file goes into a folder of this name beside it; how many such folders there are."""
    folders = {path.parent for path in root.rglob("*") if path.is_file()}
    for folder in folders:
        for path in [path for path in folder.iterdir() if path.is_file()]:
            (folder / name / path.name).mkdir(parents=True)
            shutil.copy(path, folder / name / path.name)
            shutil.copy(path, folder / name / f"thumb_{path.name}")
    return len(folders)


def plain(root: Path) -> None:
    write(root, *(f"{side}/{n}.png" for side in ("images", "masks") for n in range(3)))


def flat(root: Path) -> None:
    write(root, *(f"{n}{end}.png" for end in ("", "_mask") for n in range(3)))


def cityscapes(root: Path) -> None:
    write(root, *(f"{kind}/train/a/{n}_{kind}{end}.png" for n in range(3)
                  for kind, end in (("leftImg8bit", ""), ("gtFine", "_labelIds"))))  # fmt: skip


@pytest.mark.parametrize("write_all", [plain, flat, cityscapes, *WRITERS], ids=lambda writer: writer.__name__)
def test_folders_of_systems_change_nothing(tmp_path: Path, write_all: object) -> None:
    assert callable(write_all)
    write_all(tmp_path)
    before = read_folder(tmp_path)
    name = SYSTEM[len(write_all.__name__) % len(SYSTEM)]
    count = spoil(tmp_path, name)
    after = read_folder(tmp_path)
    assert facts(after) == facts(before)
    said = [line for line in after.remarks if line not in before.remarks]
    assert len(said) == 1
    assert f"({count})" in said[0]
    assert f"{name}/" in said[0]


@pytest.mark.parametrize("name", SYSTEM)
def test_each_folder_of_a_system(tmp_path: Path, name: str) -> None:
    plain(tmp_path)
    before = facts(read_folder(tmp_path))
    spoil(tmp_path, name)
    found = read_folder(tmp_path)
    assert facts(found) == before
    assert name in "\n".join(found.remarks)
    images = tmp_path / "images"
    assert len(read_pairs(str(images / "**/*.png"), str(tmp_path / "masks/**/*.png")).pairs) == 3
    assert len(list_images([images / "**/*.png"])) == 3
    assert len(list_images([images])) == 3


def test_results_among_the_data_are_skipped(tmp_path: Path) -> None:
    """Of `fit`, `predict` and `data`, called in the data folder; masks that a model has drawn are masks."""
    plain(tmp_path)
    before = read_folder(tmp_path)
    for folder, names in {
        "runs/set-1": ("run.json", "settings.toml", "panels/epoch_0001.png", "curves.png"),
        "predictions": ("predict.json", "one.png"),
        "set-data": ("data.toml", "split.csv", "samples.png"),
    }.items():
        for name in names:
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"{}")
    found = read_folder(tmp_path)
    assert facts(found) == facts(before)
    (line,) = set(found.remarks) - set(before.remarks)
    assert all(name in line for name in ("(3)", "runs/set-1/", "predictions/", "set-data/"))
    (tmp_path / "masks" / "predict.json").write_text("{}")
    assert facts(read_folder(tmp_path)) == facts(before)
