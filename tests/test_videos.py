"""Videos: frames come out as they went in, and masks are exact; damage and what is missing are said."""

import csv
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from support.models import brighter_than_half, save_model
from support.refusal import check, raises, refused_once
from ubend.accel.folded import FoldedUNet
from ubend.cli.app import main
from ubend.core.errors import DataError, OutputError, SettingError
from ubend.io.video import Video, open_video, read_frames, written_video

pytestmark = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")

LIKE = Video(Path("nowhere"), Fraction(30000, 1001), None)


def draw_frames(count: int = 7, height: int = 32, width: int = 48) -> NDArray[np.uint8]:
    """(count, H, W) grey: a bright bar that moves to the right."""
    frames = np.full((count, height, width), 40, np.uint8)
    for number, frame in enumerate(frames):
        frame[:, 5 * number : 5 * number + 12] = 220
    return frames


def write_exactly(path: Path, frames: NDArray[np.uint8]) -> None:
    with written_video(path, frames.shape[1:3], LIKE, exact=True) as video:  # type: ignore[arg-type]
        for frame in frames:
            video.add(frame)


@pytest.mark.parametrize("name", ["a.mkv", "with space, ä and %d.avi", "-v.mkv"])
def test_exact_frames(name: str, tmp_path: Path) -> None:
    frames = draw_frames(height=33, width=47)
    write_exactly(tmp_path / name, frames)
    video = open_video(tmp_path / name)
    assert video.rate == LIKE.rate
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
    """Mask, overlay with sound and even sides, and the table; a picture beside it goes its own way."""
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
    assert float(rows[2][1]) == pytest.approx(1001 / 30000, abs=1e-3)
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
    assert "frames of videos are" in run.output


def test_a_video_that_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be read is predicted, and how much that is is said; in a folder of videos, of this one alone."""
    (tmp_path / "films").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (40, 32, 48), np.uint8)
    for name in ("cut.mkv", "other.avi"):
        write_exactly(tmp_path / "films" / name, noise)
    cut = tmp_path / "films" / "cut.mkv"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    save_model(tmp_path / "model.safetensors", 1, "uint8")
    monkeypatch.setattr(FoldedUNet, "__call__", brighter_than_half)
    line = ["predict", tmp_path / "model.safetensors", cut.parent, "--out", tmp_path / "out", "--device", "cpu"]
    run = CliRunner().invoke(main, list(map(str, line)))
    assert run.exit_code == 0, run.output
    (said,) = [line for line in run.output.splitlines() if "WARNING" in line and "frames" in line]
    count = len((tmp_path / "out" / "cut_shares.csv").read_text().splitlines()) - 1
    assert 10 < count < 30
    assert "cut.mkv" in said
    assert f" {count} frames were read, 40 are stated" in said
    assert len((tmp_path / "out" / "other_shares.csv").read_text().splitlines()) == 41


def test_without_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with raises(DataError, path="a.mp4", key="ffmpeg"):
        open_video(tmp_path / "a.mp4")


def test_conditions_and_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames go the way of pictures: tiles, several models, views, thresholds, parts; how is said once. A broken video
    is told at the end, --resume leaves what is whole."""
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
    assert run.output.count("does not say at which scale") == 1
    masks = np.stack([frame[:, :, 0] for frame in read_frames(open_video(out / "film_mask.mkv"))])
    np.testing.assert_array_equal(masks, frames > 128)  # at their own scale: exactly
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
