"""The survey: what each mask holds, read once; kept by content; all problems at once."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.refusal import raises
from ubend.core.errors import OutputError, PairError
from ubend.dataset.scan import scan_masks
from ubend.dataset.store import hash_pairs
from ubend.labels.label_values import LabelScan, value_table
from ubend.labels.mask_files import FileMask, Layer, LayeredMask, Mask
from ubend.layouts.pairs import Pair

HW = (12, 17)
RNG = np.random.default_rng(0)
VALUES = RNG.integers(0, 4, HW).astype(np.uint8)
COLORS = np.array([(0, 0, 0), (255, 0, 0), (9, 9, 9), (1, 2, 3)], np.uint8)


def make(folder: Path) -> list[Pair]:
    """A mask of every kind, each with an image of its own."""
    palette = Image.fromarray(VALUES)
    palette.putpalette(COLORS.tobytes())
    images = {
        "grey": Image.fromarray(VALUES),
        "palette": palette,
        "color": Image.fromarray(COLORS[VALUES]),
        "deep": Image.fromarray(VALUES.astype(np.uint16) * 1000),
    }
    folder.mkdir()
    pairs = []
    for number, (name, image) in enumerate(images.items()):
        Image.fromarray(np.full((*HW, 3), number, np.uint8)).save(folder / f"{name}_image.png")
        image.save(folder / f"{name}.png")
        mask: Mask = FileMask(folder / f"{name}.png")
        pairs.append(Pair(name, folder / f"{name}_image.png", mask, None, None))
    for name, part in (("first", VALUES > 0), ("second", VALUES > 1)):
        Image.fromarray(255 * part.astype(np.uint8)).save(folder / f"{name}.png")
    layers = LayeredMask((Layer(folder / "first.png", 5), Layer(folder / "second.png", 2)))
    pairs.append(Pair("layers", folder / "grey_image.png", layers, None, None))
    Image.fromarray(255 * (VALUES > 1).astype(np.uint8)).save(folder / "jpeg.jpg")
    pairs.append(Pair("jpeg", folder / "grey_image.png", FileMask(folder / "jpeg.jpg"), None, None))
    return pairs


def survey(pairs: list[Pair], cache: Path, told: list[int] | None = None) -> LabelScan:
    digests = [mask for _image, mask in hash_pairs(pairs)]
    seen = told if told is not None else []
    return scan_masks(pairs, [HW] * len(pairs), digests, cache, lambda done, _total: seen.append(done))


def same(one: LabelScan, other: LabelScan) -> bool:
    return all(
        a.dtype == b.dtype and np.array_equal(a, b)
        for a, b in zip(vars(one).values(), vars(other).values(), strict=True)
    )


def test_what_each_mask_holds(tmp_path: Path) -> None:
    found = survey(make(tmp_path / "a"), tmp_path / "cache")
    assert found.colored.tolist() == [False, False, True, False, False, False]
    assert found.with_palette.tolist() == [False, True, False, False, False, False]
    assert found.lossy.tolist() == [False] * 5 + [True]
    counts = np.bincount(VALUES.reshape(-1), minlength=4).tolist()
    packed = [0, 0xFF0000, 0x090909, 0x010203]
    by_color = sorted(zip(packed, counts, strict=True))

    def entries(number: int) -> tuple[list[int], list[int], list[int]]:
        span = slice(found.starts[number], found.starts[number + 1])
        return found.codes[span].tolist(), found.pixels[span].tolist(), found.display_colors[span].tolist()

    assert entries(0) == ([0, 1, 2, 3], counts, [0, 0x010101, 0x020202, 0x030303])
    assert entries(1) == ([0, 1, 2, 3], counts, packed)
    assert entries(2) == (*map(list, zip(*by_color, strict=True)), [code for code, _count in by_color])
    assert entries(3) == ([0, 1000, 2000, 3000], counts, [0, -1, -1, -1])
    assert entries(4)[:2] == ([0, 2, 5], [counts[0], counts[2] + counts[3], counts[1]])  # later layers lie on top
    assert (np.add.reduceat(found.pixels, found.starts[:-1]) == HW[0] * HW[1]).all()


def test_tallies(tmp_path: Path) -> None:
    pairs = make(tmp_path / "a")[:3]
    found = survey(pairs, tmp_path / "cache")
    assert found.kind() == "color"
    tally = found.tally("color")
    assert tally.codes.tolist() == [0, 0x010101, 0x010203, 0x020202, 0x030303, 0x090909, 0xFF0000]
    assert tally.pixels.sum() == 3 * HW[0] * HW[1]
    values = survey(pairs[:2], tmp_path / "cache")
    assert values.kind() == "value"
    assert values.tally("value").pixels.sum() == 2 * HW[0] * HW[1]
    assert -1 in found.tally("value").codes
    assert value_table(values.tally("value"), "value").startswith("0 (")
    assert "#ff0000 (" in value_table(tally, "color")


def test_from_the_cache_it_is_the_same(tmp_path: Path) -> None:
    pairs, told = make(tmp_path / "a"), list[int]()
    fresh = survey(pairs, tmp_path / "cache", told)
    assert told == [1, 2, 3, 4, 5, 6]
    assert same(survey(pairs, tmp_path / "cache", told), fresh)
    assert len(told) == 6


def test_it_is_kept_by_content(tmp_path: Path) -> None:
    survey(make(tmp_path / "a"), tmp_path / "cache")
    told = list[int]()
    other = make(tmp_path / "b")
    survey(other, tmp_path / "cache", told)
    assert told == []
    Image.fromarray(VALUES[::-1]).save(other[0].mask.path)
    survey(other, tmp_path / "cache", told)
    assert told
    told.clear()
    survey(other[::-1], tmp_path / "cache", told)
    assert told
    assert len(list((tmp_path / "cache").iterdir())) == 3


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 half", None])
def test_a_damaged_survey_is_made_anew(tmp_path: Path, damage: bytes | None) -> None:
    pairs = make(tmp_path / "a")
    fresh = survey(pairs, tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    path.write_bytes(path.read_bytes()[:-99] if damage is None else damage)
    told = list[int]()
    assert same(survey(pairs, tmp_path / "cache", told), fresh)
    assert told
    assert same(survey(pairs, tmp_path / "cache", told[:0]), fresh)


def test_all_problems_at_once(tmp_path: Path) -> None:
    pairs = make(tmp_path / "a")
    pairs[0].mask.path.write_bytes(b"nothing")
    pairs.append(replace(pairs[0], name="again"))
    pairs[4].mask.path.write_bytes(b"nothing")  # its first layer
    Image.new("L", (3, 4)).save(pairs[2].mask.path)
    digests = [mask for _image, mask in hash_pairs(pairs)]
    with pytest.raises(PairError) as caught:
        scan_masks(pairs, [HW] * len(pairs), digests, tmp_path / "cache")
    assert list(caught.value.bad) == ["grey", "color", "layers", "again"]
    assert "the mask is 3x4 px but its image is 17x12 px" in caught.value.bad["color"][0]
    assert len(caught.value.problems) == 3  # one file, one line
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with raises(OutputError, path="cache"):
        survey(make(tmp_path / "a"), tmp_path / "cache")
