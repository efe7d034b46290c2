"""Videos: frames come out as they went in, and masks are exact; damage and what is missing are reported."""

import csv
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from support.commands import predict
from support.models import brighter_than_half, save_model
from support.refusal import check, invoke, raises, refused_once
from ubend.accel.folded import FoldedUNet
from ubend.cli.app import main
from ubend.core.errors import DataError, FilesError, OutputError, SettingError
from ubend.io.video import Video, VideoReader, open_video, written_video

pytestmark = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")

LIKE = Video(Path("nowhere"), Fraction(30000, 1001), None)


def draw_frames(count: int = 7, height: int = 32, width: int = 48) -> NDArray[np.uint8]:
    """(count, H, W) grey: a bright bar that moves to the right."""
    frames = np.full((count, height, width), 40, np.uint8)
    for number, frame in enumerate(frames):
        frame[:, 5 * number : 5 * number + 12] = 220
    return frames


def write_exactly(path: Path, frames: NDArray[np.uint8], times: Sequence[float] | None = None) -> None:
    with written_video(path, frames.shape[1:3], LIKE, exact=True) as video:  # type: ignore[arg-type]
        for number, frame in enumerate(frames):
            video.add(float(number / LIKE.rate) if times is None else times[number], frame)


def read_frames(video: Video) -> Iterator[NDArray[np.uint8]]:
    """The frames of a video that is whole."""
    reader = VideoReader(video)
    yield from (frame for _seconds, frame in reader)
    assert reader.damage is None


def read_times(path: Path) -> list[float]:
    return [seconds for seconds, _frame in VideoReader(open_video(path))]


def convert(source: Path, target: Path, *words: str) -> None:
    subprocess.run(["ffmpeg", "-v", "error", "-i", source, *words, target], check=True)


@pytest.mark.parametrize("name", ["a.mkv", "with space, ä and %d.mov", "-v.mkv"])
def test_exact_frames(name: str, tmp_path: Path) -> None:
    frames = draw_frames(height=33, width=47)
    write_exactly(tmp_path / name, frames)
    video = open_video(tmp_path / name)
    assert float(video.rate) == pytest.approx(float(LIKE.rate), rel=0.01)  # Matroska rounds to milliseconds
    assert video.frames == len(frames)
    found = list(read_frames(video))
    assert len(found) == len(frames)
    for frame, wanted in zip(found, frames, strict=True):
        np.testing.assert_array_equal(frame, np.repeat(wanted[:, :, None], 3, axis=2))


@pytest.mark.parametrize("kind", ["gray16le", "yuv444p10le"])
def test_more_than_8_bits(kind: str, tmp_path: Path) -> None:
    """Read as 8 bits, all frames."""
    frames = draw_frames()
    write_exactly(tmp_path / "a.mkv", frames)
    words = ["ffmpeg", "-v", "error", "-i", tmp_path / "a.mkv", "-pix_fmt", kind, "-c:v", "ffv1", tmp_path / "deep.mkv"]
    subprocess.run(words, check=True)
    found = np.stack(list(read_frames(open_video(tmp_path / "deep.mkv")))).astype(int)
    assert np.abs(found - frames[..., None]).max() <= 2


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mask, overlay with sound and even sides, and the table; an image beside it goes its own way."""
    frames = draw_frames(height=33, width=47)
    write_exactly(tmp_path / "silent.mkv", frames)
    words = ["ffmpeg", "-v", "error", "-i", tmp_path / "silent.mkv", "-f", "lavfi", "-i", "sine=440:duration=1"]
    subprocess.run([*words, "-c:v", "copy", "-c:a", "aac", "-shortest", tmp_path / "film.mkv"], check=True)
    save_model(tmp_path / "model.safetensors", 3, "uint8")
    monkeypatch.setattr(FoldedUNet, "__call__", brighter_than_half)
    line = ["predict", tmp_path / "model.safetensors", tmp_path / "film.mkv", "--out", tmp_path / "out"]
    run = CliRunner().invoke(main, [*map(str, line), "--device", "cpu"])
    assert run.exit_code == 0, run.output
    masks = [frame[:, :, 0] for frame in read_frames(open_video(tmp_path / "out" / "film_mask.mkv"))]
    assert len(masks) == len(frames)
    agreed = np.mean([(mask == (frame > 128)).mean() for mask, frame in zip(masks, frames, strict=True)])
    assert agreed > 0.95  # resized there and back
    overlay = open_video(tmp_path / "out" / "film_overlay.mp4")
    shown = list(read_frames(overlay))
    assert len(shown) == len(frames)
    assert shown[0].shape == (34, 48, 3)
    probed = subprocess.run(
        ["ffprobe", "-v", "error", "-show_entries", "stream=codec_type", "-of", "csv=p=0", overlay.path],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert probed.stdout.split() == ["video", "audio"]
    rows = list(csv.reader((tmp_path / "out" / "film_shares.csv").read_text().splitlines()))
    assert rows[0] == ["frame", "seconds", "background", "organ"]
    assert len(rows) == len(frames) + 1
    assert [float(row[3]) for row in rows[1:]] == pytest.approx([mask.mean() for mask in masks], abs=1e-5)
    assert float(rows[2][1]) - float(rows[1][1]) == pytest.approx(1001 / 30000, abs=2e-3)
    assert float(rows[1][1]) > 0.02  # the sound begins before, in the overlay too
    assert read_times(overlay.path) == pytest.approx([float(row[1]) for row in rows[1:]], abs=0.001)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "film_mask.mkv", "film_overlay.mp4", "film_shares.csv", "predict.json",
    ]  # fmt: skip
    again = CliRunner().invoke(main, [*map(str, line), "--device", "cpu"])
    assert again.exit_code == 2
    assert "film_mask.mkv exists already, and 2 more" in again.output


def test_damaged(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    with raises(DataError, path="text.mp4", named=["Invalid data"]) as caught:
        open_video(tmp_path / "text.mp4")
    assert "\n" not in str(caught.value)
    with raises(OutputError, path="a.mkv"):
        write_exactly(tmp_path / "nowhere" / "a.mkv", draw_frames())
    save_model(tmp_path / "model.safetensors", 4, "uint8")
    write_exactly(tmp_path / "a.mkv", draw_frames())
    line = ["predict", tmp_path / "model.safetensors", tmp_path / "a.mkv", "--out", tmp_path / "out"]
    run = CliRunner().invoke(main, [*map(str, line), "--device", "cpu"])
    assert run.exit_code == 2
    assert "cannot be used on videos" in run.output


DAMAGED = ["half.mkv", "half.avi", "half.mp4", "flipped.mp4"]


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole films of 40 frames, and those of DAMAGED: without their second half, or with bytes changed."""
    place = tmp_path_factory.mktemp("films")
    write_exactly(place / "exact.mkv", np.random.default_rng(0).integers(0, 256, (40, 32, 48)).astype(np.uint8))
    for name in ("whole.mkv", "whole.avi", "whole.mp4"):
        convert(place / "exact.mkv", place / name, "-c:v", "mpeg4", "-b:v", "400k", "-movflags", "faststart")
        data = (place / name).read_bytes()
        (place / f"half{Path(name).suffix}").write_bytes(data[: len(data) // 2])
    flipped = bytearray((place / "whole.mp4").read_bytes())
    for byte in range(len(flipped) // 2, len(flipped), 997):
        flipped[byte] ^= 255
    (place / "flipped.mp4").write_bytes(flipped)
    return place


@pytest.mark.parametrize("name", ["whole.mkv", "whole.avi", "whole.mp4"])
def test_a_whole_video_is_not_called_damaged(name: str, films: Path) -> None:
    reader = VideoReader(open_video(films / name))
    assert len(list(reader)) == 40
    assert reader.damage is None


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_frames_are_told(name: str, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be read is written, also of the last frames; the damage is reported, at each --resume too."""
    save_model(tmp_path / "model.safetensors", 3, "uint8")
    monkeypatch.setattr(FoldedUNet, "__call__", brighter_than_half)
    count = len(list(VideoReader(open_video(films / name))))
    assert count == 40 if name == "flipped.mp4" else 0 < count < 40
    for more in ([], ["--resume"]):
        words = ["predict", tmp_path / "model.safetensors", films / name, "--out", tmp_path / "out", "--device", "cpu"]
        result, error = invoke(*words, *more)
        assert result.exit_code == 3
        assert error is not None
        check(error, FilesError, named=[name, f"{count} "])
        (problem,) = error.problems
        assert "0x55" not in problem
        stem = Path(name).stem
        assert len((tmp_path / "out" / f"{stem}_shares.csv").read_text().splitlines()) == count + 1
        assert len(list(read_frames(open_video(tmp_path / "out" / f"{stem}_mask.mkv")))) == count


def test_an_avi_that_repeats_frames(tmp_path: Path) -> None:
    """Its header counts the repeated ones, which are not in it."""
    times = [0.0, 0.1, 0.2, 0.3, 1.8, 1.9, 2.6]
    write_exactly(tmp_path / "exact.mkv", draw_frames(), times)
    convert(tmp_path / "exact.mkv", tmp_path / "film.avi", "-c:v", "mpeg4", "-r", "10")
    reader = VideoReader(open_video(tmp_path / "film.avi"))
    assert len(list(reader)) < (reader.video.stated or 0)
    assert reader.damage is None


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_uneven_times(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Table, mask and overlay have the times of the frames, one frame for each."""
    times = [0.0, 0.1, 0.2, 0.3, 1.8, 1.9, 2.6]
    frames = draw_frames()
    write_exactly(tmp_path / "exact.mkv", frames, times)
    film = tmp_path / f"film{suffix}"
    passed = ["-fps_mode", "passthrough", "-enc_time_base", "-1"]
    convert(tmp_path / "exact.mkv", film, "-c:v", "ffv1" if suffix == ".mkv" else "mpeg4", "-q:v", "1", *passed)
    assert read_times(film) == pytest.approx(times, abs=0.001)
    save_model(tmp_path / "model.safetensors", 3, "uint8")
    monkeypatch.setattr(FoldedUNet, "__call__", brighter_than_half)
    predict(tmp_path / "model.safetensors", film, "--out", tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "film_shares.csv").read_text().splitlines()))
    for found in (
        [float(row["seconds"]) for row in rows],
        read_times(tmp_path / "out" / "film_mask.mkv"),
        read_times(tmp_path / "out" / "film_overlay.mp4"),
    ):
        assert found == pytest.approx(read_times(film), abs=0.0011)


def test_one_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its overlay is shown as long as it."""
    write_exactly(tmp_path / "film.mkv", draw_frames(1))
    save_model(tmp_path / "model.safetensors", 3, "uint8")
    monkeypatch.setattr(FoldedUNet, "__call__", brighter_than_half)
    predict(tmp_path / "model.safetensors", tmp_path / "film.mkv", "--out", tmp_path / "out")
    rate = float(open_video(tmp_path / "film.mkv").rate)
    assert float(open_video(tmp_path / "out" / "film_overlay.mp4").rate) == pytest.approx(rate, rel=0.01)


def test_a_folder_of_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its videos are predicted; beside images, they are not."""
    (tmp_path / "films").mkdir()
    for name in ("a.mkv", "b.MOV"):
        write_exactly(tmp_path / "films" / name, draw_frames())
    save_model(tmp_path / "model.safetensors", 3, "uint8")
    monkeypatch.setattr(FoldedUNet, "__call__", brighter_than_half)
    predict(tmp_path / "model.safetensors", tmp_path / "films", "--out", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").glob("*_mask.mkv")} == {"a_mask.mkv", "b_mask.mkv"}
    Image.fromarray(draw_frames()[0]).save(tmp_path / "films" / "c.png")
    predict(tmp_path / "model.safetensors", tmp_path / "films", "--out", tmp_path / "more")
    assert (tmp_path / "more" / "c.png").exists()
    assert not list((tmp_path / "more").glob("*_mask.mkv"))


def test_sound_alone(tmp_path: Path) -> None:
    words = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "sine=440:duration=1", tmp_path / "sound.mp4"]
    subprocess.run(words, check=True)
    with raises(DataError, path="sound.mp4") as caught:
        open_video(tmp_path / "sound.mp4")
    assert "()" not in str(caught.value)


def test_without_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with raises(DataError, path="a.mp4", key="ffmpeg"):
        open_video(tmp_path / "a.mp4")


def test_conditions_and_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames go the way of images: tiles, several models, views, thresholds, regions; each said once. A broken video is
    reported at the end, --resume leaves what is whole."""
    frames = draw_frames(height=33, width=47)
    write_exactly(tmp_path / "film.mkv", frames)
    write_exactly(tmp_path / "other.mkv", frames[::-1])
    (tmp_path / "text.mp4").write_text("no video")
    save_model(tmp_path / "grey.safetensors", 1, "uint8")
    save_model(tmp_path / "color.safetensors", 3, "uint8")
    monkeypatch.setattr(FoldedUNet, "__call__", brighter_than_half)
    words = ["predict", tmp_path / "grey.safetensors", "--device", "cpu", "--tiles", 16, "--overlap", 0.5, "--tta"]
    words += ["--with", tmp_path / "color.safetensors", "--min-area", 50, "--threshold", "organ=0.4"]
    paths, out = [tmp_path / name for name in ("film.mkv", "text.mp4", "other.mkv")], tmp_path / "out"
    run = CliRunner().invoke(main, [*map(str, [*words, *paths, "--out", out])])
    assert run.exit_code == 3
    assert "text.mp4: not a readable video" in run.output
    assert run.output.count("does not state the scale") == 1
    masks = np.stack([frame[:, :, 0] for frame in read_frames(open_video(out / "film_mask.mkv"))])
    np.testing.assert_array_equal(masks, frames > 128)  # at native scale: exactly
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    (out / "other_shares.csv").unlink()
    run = CliRunner().invoke(main, [*map(str, [*words, paths[0], paths[2], "--out", out, "--resume"])])
    assert run.exit_code == 0, run.output
    after = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert {name for name in before if before[name] != after.get(name)} == {
        "other_mask.mkv", "other_overlay.mp4", "other_shares.csv",
    }  # fmt: skip
    small = CliRunner().invoke(main, [*map(str, [*words, paths[0], "--min-area", 10**6, "--out", tmp_path / "small"])])
    assert small.exit_code == 0, small.output
    assert not any(frame.any() for frame in read_frames(open_video(tmp_path / "small" / "film_mask.mkv")))
    write_exactly(tmp_path / "film.avi", frames)
    clash = refused_once(*words, paths[0], tmp_path / "film.avi", "--out", tmp_path / "none")
    check(clash, DataError, key="--out", named=["film.avi"])
    error = refused_once(*words, paths[0], "--prob", "npz", "--out", tmp_path / "none")
    check(error, SettingError, key="--prob")
    assert not (tmp_path / "none").exists()
