"""Probabilities as files: what the model says comes back, whole or by rows; a failed stream leaves nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from ubend.core.errors import DataError, OutputError
from ubend.core.files import write_text
from ubend.portable.probabilities import ProbKind, write_probabilities, written_beside

NAMES = ("nền", "<cell> & edge", "c")


def draw_prob(height: int = 300, width: int = 270) -> np.ndarray:
    """(3, H, W) that add up to 1."""
    raw = np.random.default_rng(0).uniform(size=(3, height, width)).astype(np.float32) ** 4
    return raw / raw.sum(axis=0)  # type: ignore[no-any-return]


def read(path: Path) -> np.ndarray:
    """(3, H, W), as the file's own words say."""
    if path.suffix == ".npz":
        with np.load(path) as file:
            assert tuple(file["classes"]) == NAMES
            return np.moveaxis(file["prob"], 2, 0)  # type: ignore[no-any-return]
    with tifffile.TiffFile(path) as file:
        said = json.loads(file.pages.first.description)
        assert tuple(said["classes"]) == NAMES
        what, white = said["value"].split(" / ")
        assert what == "probability = value"
        return np.moveaxis(file.asarray(), 2, 0) / int(white)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("kind", "off"), [("uint8", 0.5 / 255), ("uint16", 0.5 / 65535), ("npz", 0.0)])
def test_what_was_written_comes_back(kind: ProbKind, off: float, tmp_path: Path) -> None:
    prob = draw_prob()
    path = tmp_path / "new" / f"a.{'npz' if kind == 'npz' else 'tif'}"
    strips = [prob[:, :100], prob[:, 100:101], prob[:, 101:]]
    write_probabilities(path, prob.shape[1:], strips, NAMES, kind)  # type: ignore[arg-type]
    assert np.abs(read(path) - prob).max() <= off + 1e-7
    write_probabilities(tmp_path / path.name, prob.shape[1:], [prob], NAMES, kind)  # type: ignore[arg-type]
    assert (tmp_path / path.name).read_bytes() == path.read_bytes(), "however it was cut"


@pytest.mark.parametrize("kind", ["uint8", "npz"])
def test_a_stream_that_fails(kind: ProbKind, tmp_path: Path) -> None:
    def strips():  # type: ignore[no-untyped-def]
        yield draw_prob()[:, :200]
        raise DataError("a damaged tile")

    with pytest.raises(DataError, match="a damaged tile"):
        write_probabilities(tmp_path / "a.tif", (300, 270), strips(), NAMES, kind)
    assert list(tmp_path.iterdir()) == []


def test_two_files_from_one_stream(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"

    def write(parts):  # type: ignore[no-untyped-def]
        write_text(path, "".join(parts))

    with written_beside(write) as add:
        for part in "abcd":
            add(part)
        assert not path.exists()
    assert path.read_text() == "abcd"
    path.unlink()

    def stop_halfway() -> None:
        with written_beside(write) as add:
            add("a")
            raise DataError("halfway")

    with pytest.raises(DataError, match="halfway"):
        stop_halfway()
    assert not path.exists()

    def fail(parts):  # type: ignore[no-untyped-def]
        next(parts)
        raise OutputError("full")

    def go_on(count: int) -> None:
        with written_beside(fail) as add:
            for _ in range(count):
                add("a")

    for count in (1, 9):
        with pytest.raises(OutputError, match="full"):
            go_on(count)
