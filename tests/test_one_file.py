"""Whatever fails for one file, in reading, predicting or writing it, is that file's line at the end; the results of
all others are those that they have without it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.refusal import check, contents, invoke, refused
from ubend.core.errors import DataError, FilesError, OutputError
from ubend.portable import file_jobs
from ubend.portable.mask_predictor import MaskPredictor

COMMANDS = {"predict": [], "objects": ["--method", "parts"], "cutout": []}
FAILURES = [MemoryError(), OSError(5, "Input/output error"), ValueError("bad"), RecursionError(), KeyError("x")]
FAILURES += [OutputError("cannot write", path="x"), RuntimeError("CUDA out of memory")]


@pytest.fixture
def images(good: Path) -> list[Path]:
    return sorted((good / "data" / "images").iterdir())[:5]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("stage", ["inspect", "read", "predict", "write"])
def test_any_failure_of_one_file(
    command: str, stage: str, good: Path, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A property of the pipeline: three commands, four stages, all kinds of failures."""
    words = [command, good / "run", *COMMANDS[command], "--device", "cpu"]
    result, _error = invoke(*words, *images[:2], *images[3:], "--out", tmp_path / "alone")
    assert result.exit_code == 0, result.output
    alone = contents(tmp_path / "alone")
    turn = [*COMMANDS].index(command) + len(stage)
    for number, failure in enumerate([FAILURES[turn % 7], FAILURES[(turn + 4) % 7]]):
        with monkeypatch.context() as patch:
            inject(patch, stage, images[2], failure)
            told = refused(*words, *images, "--out", tmp_path / str(number))
        assert type(told) is FilesError
        assert told.path is not None
        assert contents(tmp_path / str(number)) == alone


def inject(patch: pytest.MonkeyPatch, stage: str, bad: Path, failure: Exception) -> None:
    """Let one stage fail for one file."""

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def work(job: file_jobs.ImageJob, number: int, *rest: Any) -> Any:
            if job.paths[number] == bad:
                raise failure
            return real(job, number, *rest)

        return work

    if stage == "predict":
        real = MaskPredictor.predict

        def predict(masks: MaskPredictor[Any], images: Any, **how: Any) -> Iterator[Any]:
            def given() -> Iterator[Any]:
                for key, image in images:
                    if key[0] == numbers[0]:
                        raise failure
                    yield key, image

            return real(masks, given(), **how)

        numbers = [2]
        patch.setattr(MaskPredictor, "predict", predict)
        return
    kinds = [file_jobs.ImageJob]
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        name = {"inspect": "inspect", "read": "_read", "write": "write_one"}[stage]
        if name in vars(kind) and not getattr(vars(kind)[name], "__isabstractmethod__", False):
            patch.setattr(kind, name, failing(vars(kind)[name]))


@pytest.mark.parametrize("command", COMMANDS)
def test_names(command: str, good: Path, images: list[Path], tmp_path: Path) -> None:
    """Missing, unmatched, longer than a file's name can be, as long as it can be: one line each."""
    longest = tmp_path / f"{'n' * 251}.png"
    longest.write_bytes(images[0].read_bytes())
    bad = [tmp_path / "none.png", tmp_path / "none*.png", longest, tmp_path / ("m" * 300 + ".png")]
    words = [command, good / "run", *COMMANDS[command], "--device", "cpu", "--out", tmp_path / "out"]
    told = refused(*words, images[1], *bad, images[2])
    assert isinstance(told, DataError)
    wanted = 3 if command == "cutout" else 4  # NAME.png of the longest is no longer than itself
    assert len(told.problems) == wanted
    assert len([name for name in contents(tmp_path / "out") if name.startswith(("disc01", "disc02"))]) in (2, 4, 6)


def test_nothing_done(good: Path, tmp_path: Path) -> None:
    """Where no file can be used the exit code is 2, and no folder is left."""
    told = refused("predict", good / "run", tmp_path / "none.png", "--out", tmp_path / "out", "--device", "cpu")
    assert type(told) is DataError
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["predict", "objects"])
def test_a_folder_without_images_stops_no_other(command: str, good: Path, images: list[Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    words = [command, good / "run", images[0], tmp_path / "empty", "--out", tmp_path / "out", "--device", "cpu"]
    result, error = invoke(*words)
    assert result.exit_code == 3
    assert isinstance(error, FilesError)
    assert [str(tmp_path / "empty") in line for line in error.problems] == [True]
    assert any(path.stem.startswith(images[0].stem) for path in (tmp_path / "out").iterdir())
    alone = refused(command, good / "run", tmp_path / "empty", "--out", tmp_path / "none", "--device", "cpu")
    assert isinstance(alone, DataError)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["a.nii.gz", "a.dcm"])
@pytest.mark.parametrize("command", ["objects", "cutout"])
def test_scans_are_left_to_predict(command: str, name: str, good: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(bytes(128) + b"DICM" + bytes(400))
    error = refused(command, good / "run", tmp_path / name, *COMMANDS[command], "--out", tmp_path / "out")
    check(error, DataError, path=name, named=["a scan", "ubend predict"])


@pytest.mark.parametrize("command", COMMANDS)
def test_other_files_that_match_a_pattern_are_passed_over(
    command: str, good: Path, images: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / images[0].name).write_bytes(images[0].read_bytes())
    (tmp_path / "in" / "list.csv").touch()
    words = [command, good / "run", *COMMANDS[command], "--device", "cpu"]
    result, _error = invoke(*words, tmp_path / "in" / "**", "--out", tmp_path / "out")
    assert result.exit_code == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_folders_in_a_folder_are_said(command: str, good: Path, images: list[Path], tmp_path: Path) -> None:
    (tmp_path / "in" / "deeper").mkdir(parents=True)
    for place, image in ((tmp_path / "in", images[0]), (tmp_path / "in" / "deeper", images[1])):
        (place / image.name).write_bytes(image.read_bytes())
    words = [command, good / "run", *COMMANDS[command], "--device", "cpu"]
    result, _error = invoke(*words, tmp_path / "in", "--out", tmp_path / "out")
    assert result.exit_code == 0
    assert f"{tmp_path / 'in'}/**" in result.output.replace("\n", "")
    assert not any(path.name.startswith(images[1].stem) for path in (tmp_path / "out").iterdir())
    invoke(*words, f"{tmp_path / 'in'}/**", "--out", tmp_path / "all")
    assert any(path.name.startswith(images[1].stem) for path in (tmp_path / "all").iterdir())
