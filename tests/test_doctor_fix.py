"""`ubend doctor --fix`: what is mended in the copy, what stays as it is, and that the original does."""

import copy
import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

import synthetic_faults
from support.annotated import coco_in_annotations
from support.refusal import contents
from ubend.cli.app import main
from ubend.core.errors import DataError, OutputError, SettingError
from ubend.core.progress import Reporter
from ubend.core.settings import make_settings
from ubend.doctor.mask_repair import snap_values
from ubend.doctor.repairs import REPAIRS
from ubend.doctor.values import KnownValues
from ubend.labels.label_values import LabelArray, ValueKind
from ubend.portable import files
from ubend.tasks import doctor_fix
from ubend.tasks.doctor import examine_data

FAULTS = {fault.kind: fault for fault in synthetic_faults.FAULTS}
# Kinds of drawn faults that a repair mends in all families.
MENDED = (
    "image without mask", "mask without image", "image is its mask", "truncated", "not an image", "empty file", "copy",
    "copy in two splits", "changed copy in two splits", "flipped copy in two splits", "flipped mask",
    "upside-down mask", "constant image", "turned by EXIF",
)  # fmt: skip


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> synthetic_faults.Folder:
    return synthetic_faults.Folder(tmp_path_factory.mktemp("fix") / "clean", "blobs", np.random.default_rng(3))


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UBEND_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(blobs: synthetic_faults.Folder, tmp_path: Path) -> synthetic_faults.Folder:
    """A copy of the clean folder, to put faults into."""
    shutil.copytree(blobs.root, tmp_path / "data")
    own = copy.copy(blobs)
    own.root, own.free = tmp_path / "data", {split: list(names) for split, names in blobs.free.items()}
    return own


def fix(root: Path, out: Path, **changes: object) -> None:
    """Write the copy."""
    settings = make_settings(changes={"data.folder": str(root), "data.size": synthetic_faults.SIDE_PX, **changes})
    before = contents(root)
    try:
        examine_data(settings, fix=out, reporter=Reporter())
    except DataError as error:
        if error.path != out:
            raise
    assert contents(root) == before


def errors(out: Path) -> list[str]:
    """The checks of the errors in a folder."""
    found = synthetic_faults.examine(out, out.parent / "cache")
    return [finding.check for finding in found if finding.grade == "error"]


def repairs(out: Path) -> dict[str, str]:
    """File -> check, of `repairs.csv`."""
    with (out / "repairs.csv").open(newline="", encoding="utf-8") as file:
        return {row["file"]: row["check"] for row in csv.DictReader(file)}


def assert_others_are_equal(root: Path, out: Path) -> None:
    """All files but those that `repairs.csv` names are as they were, and none is new but their replacements."""
    before, after, mended = contents(root), contents(out), repairs(out)
    after.pop("repairs.csv")
    assert {name: data for name, data in before.items() if name not in mended} == {
        name: data for name, data in after.items() if name in before and name not in mended
    }
    new = {name for name in after if name not in before}
    assert {Path(name).with_suffix("") for name in new} <= {Path(name).with_suffix("") for name in mended}


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_copy_of_a_clean_folder_is_equal(folder: synthetic_faults.Folder, tmp_path: Path) -> None:
    fix(folder.root, tmp_path / "out")
    assert repairs(tmp_path / "out") == {}
    assert_others_are_equal(folder.root, tmp_path / "out")


def test_several_faults_are_mended_together(
    blobs: synthetic_faults.Folder, folder: synthetic_faults.Folder, tmp_path: Path
) -> None:
    drawn = {kind: FAULTS[kind].draw(folder) for kind in (
        "value off by one", "truncated", "copy in two splits", "flipped mask", "mask without image", "JPEG among PNG",
    )}  # fmt: skip
    out = tmp_path / "out"
    fix(folder.root, out)
    assert errors(out) == []
    assert_others_are_equal(folder.root, out)
    for kind in ("value off by one", "flipped mask", "JPEG among PNG"):
        (mask,) = (path.relative_to(folder.root).with_suffix(".png") for path in drawn[kind])
        assert np.array_equal(pixels(out / mask), pixels(blobs.root / mask)), kind
    image = drawn["truncated"][0].relative_to(folder.root)
    assert not (out / image).exists()
    assert not (out / image.parent.parent / "masks" / image.name).exists()
    added, original = (path.relative_to(folder.root) for path in drawn["copy in two splits"])
    assert added.parts[0] == "train"
    assert not (out / added).exists()
    assert (out / original).exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", MENDED)
def test_no_error_that_a_repair_mends_is_left(kind: str, tmp_path: Path) -> None:
    family = synthetic_faults.FAMILIES[MENDED.index(kind) % len(synthetic_faults.FAMILIES)]
    drawn = synthetic_faults.Folder(tmp_path / "data", family, np.random.default_rng(3))
    FAULTS[kind].draw(drawn)
    fix(drawn.root, tmp_path / "out")
    assert not {*errors(tmp_path / "out")} & REPAIRS.keys()
    assert repairs(tmp_path / "out")
    assert_others_are_equal(drawn.root, tmp_path / "out")


def test_what_is_not_sure_stays(folder: synthetic_faults.Folder, tmp_path: Path) -> None:
    for kind in ("shifted mask", "same image, two masks", "one mask for two images", "other size"):
        FAULTS[kind].draw(folder)
    fix(folder.root, tmp_path / "out")
    assert repairs(tmp_path / "out") == {}
    assert_others_are_equal(folder.root, tmp_path / "out")


def test_a_mask_of_the_stored_image_is_turned_with_it(discs: Path, tmp_path: Path) -> None:
    """An image that EXIF turns, and its mask in the form in which the image is stored: in the copy both are upright."""
    for path in (*(discs / "images").iterdir(), *(discs / "masks").iterdir()):
        with Image.open(path) as stored:
            stored.crop((0, 0, stored.width * 3 // 4, stored.height)).save(path)
    image, mask = (discs / kind / "disc03.png" for kind in ("images", "masks"))
    upright = {path: pixels(path) for path in (image, mask)}
    for path, orientation in ((image, 6), (mask, 1)):
        with Image.open(path) as stored:
            turned, tags = stored.transpose(Image.Transpose.ROTATE_90), Image.Exif()
        tags[0x0112] = orientation
        turned.save(path, exif=tags)
    fix(discs, tmp_path / "out")
    with (tmp_path / "out" / "repairs.csv").open(newline="", encoding="utf-8") as file:
        rows = [(row["file"], row["check"]) for row in csv.DictReader(file)]
    assert rows == [("masks/disc03.png", "size mismatch"), ("images/disc03.png", "turned image")]
    for path, expected in upright.items():
        assert np.array_equal(pixels(tmp_path / "out" / path.relative_to(discs)), expected)


def test_a_split_file_is_written_without_what_is_left_out(discs: Path, tmp_path: Path) -> None:
    names = sorted(path.stem for path in (discs / "images").iterdir())
    for kind in ("images", "masks"):
        shutil.copy(discs / kind / "disc03.png", discs / kind / "disc98.png")
    rows = [(name, "test" if i > 19 else "val" if i > 15 else "train") for i, name in enumerate([*names, "disc98"])]
    split = tmp_path / "split.csv"
    split.write_text("file,split\n" + "".join(f"{name},{word}\n" for name, word in rows))
    out = tmp_path / "out"
    fix(discs, out, **{"data.split": str(split)})
    left = [line.split(",")[:2] for line in (out / "split.csv").read_text().splitlines()[1:]]
    assert sorted(map(tuple, left)) == sorted(
        row for row in rows if row[0] != "disc03"
    )  # the copy of the test split stays
    result = CliRunner().invoke(main, ["doctor", str(out), "--split", str(out / "split.csv")])
    assert result.exit_code == 0, result.output


def test_pairs_of_an_annotation_file_are_not_left_out(tmp_path: Path) -> None:
    root = tmp_path / "data"
    coco_in_annotations(root)
    image = next(path for path in sorted(root.rglob("*.jpg")))
    image.write_bytes(image.read_bytes()[:200])
    with pytest.raises(DataError) as caught:
        examine_data(make_settings(changes={"data.folder": str(root), "data.size": 64}), fix=tmp_path / "out")
    assert caught.value.path == tmp_path / "out"  # what is left in the copy is reported
    assert contents(tmp_path / "out").keys() == contents(root).keys() | {"repairs.csv"}


# Refusals, after which nothing is written


def assert_nothing_is_written(tmp_path: Path, root: Path) -> None:
    left = {path.name for path in tmp_path.iterdir()} - {root.name, "cache"}
    assert not {name for name in left if "out" in name}


def test_places_that_are_refused(discs: Path, tmp_path: Path) -> None:
    settings = make_settings(changes={"data.folder": str(discs)})
    (tmp_path / "there").mkdir()
    for place in (tmp_path / "there", discs / "out", discs / "images" / "deep" / "out"):
        with pytest.raises(OutputError) as refused:
            examine_data(settings, fix=place)
        assert refused.value.key == "--fix"
    lists = make_settings(changes={"data.images": str(discs / "images"), "data.masks": str(discs / "masks")})
    with pytest.raises(SettingError) as without:
        examine_data(lists, fix=tmp_path / "out")
    assert without.value.key == "--fix"
    assert_nothing_is_written(tmp_path, discs)


def test_most_pairs_are_never_left_out(discs: Path, tmp_path: Path) -> None:
    for path in sorted((discs / "images").iterdir())[:13]:
        path.write_bytes(b"no image")
    with pytest.raises(DataError) as caught:
        examine_data(make_settings(changes={"data.folder": str(discs)}), fix=tmp_path / "out")
    assert caught.value.path == discs
    assert_nothing_is_written(tmp_path, discs)


def test_a_full_disk_is_reported_first(discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = make_settings(changes={"data.folder": str(discs)})
    examine_data(settings)  # fills the cache
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    with pytest.raises(OutputError):
        examine_data(settings, fix=tmp_path / "out")
    assert_nothing_is_written(tmp_path, discs)


def test_an_interrupted_copy_leaves_nothing(discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_self: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor_fix._Copy, "finish", interrupt)
    with pytest.raises(KeyboardInterrupt):
        examine_data(make_settings(changes={"data.folder": str(discs)}), fix=tmp_path / "out")
    assert_nothing_is_written(tmp_path, discs)


# Label values that have one answer


@pytest.mark.parametrize(
    ("kind", "held", "known", "expected"),
    [
        ("value", (0, 254), (0, 255), (0, 255)),
        ("value", (0, 1), (0, 255), (0, 255)),  # a boolean mask
        ("value", (0, 1, 255), (0, 255), (0, 0, 255)),
        ("value", (0, 3, 90, 200, 255), (0, 255), (0, 0, 0, 255, 255)),  # resampled
        ("value", (0, 99, 200), (0, 100, 200), (0, 100, 200)),
        ("value", (0, 1), (0, 100, 200), None),  # another scale
        ("value", (1, 2, 3, 4), (0, 1, 2, 3), None),  # all numbers are one too high
        ("value", (0, 2), (0, 1), None),  # a class of its own, or the other's
        ("value", (0, 60, 255), (0, 128, 255), None),
        ("color", (0, 0xD62424), (0, 0xDC2828, 0x28C83C), (0, 0xDC2828)),
        ("color", (0, 0x808080), (0, 0xDC2828, 0x28C83C), None),
    ],
)
def test_values_are_snapped_where_there_is_one_answer(
    kind: ValueKind, held: tuple[int, ...], known: tuple[int, ...], expected: tuple[int, ...] | None
) -> None:
    mask = LabelArray(np.array([held], np.uint8 if kind == "value" else np.int32), kind)
    snapped = snap_values(mask, KnownValues(kind, np.array(known, np.int32)))
    assert (None if snapped is None else tuple(snapped.values[0].tolist())) == expected
