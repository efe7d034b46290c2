"""Reads and writes videos with ffmpeg, which must be on the PATH. H x W px, RGB."""

import json
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ubend.core.errors import DataError, OutputError, reason
from ubend.core.files import regular_file
from ubend.core.i18n import _

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")
_TICKS = 10**6  # time stamp units per second, from and to ffmpeg
_LINES, _LINE = 3, 150  # reported lines of ffmpeg's errors, and characters of each
_LATE_FRAMES = 1  # frames that a codec in an AVI may omit at the end (measured: MPEG-4)


@dataclass(frozen=True)
class Video:
    """Properties of a video, known before a frame is read.

    Attributes:
        path: the file.
        rate: mean number of frames per second.
        frames: number of frames, from the header or estimated from the duration; None: unknown.
        stated: number of frames in the header of an AVI, including repeated ones; None: another container (for most of
            which ffmpeg itself reports a missing end).
    """

    path: Path
    rate: Fraction
    frames: int | None
    stated: int | None = None


def open_video(path: Path) -> Video:
    """Read the properties of a video.

    Raises:
        DataError: ffmpeg is not installed, or the file is not a video.
    """
    if shutil.which("ffmpeg") is None or shutil.which("ffprobe") is None:
        raise DataError(
            _("{path}: reading videos needs ffmpeg; install it and make sure it is on the PATH").format(path=path),
            path=path,
            key="ffmpeg",
        )
    try:
        regular_file(path)
    except OSError as error:
        raise _no_video(path, reason(error)) from error
    args = ["ffprobe", "-v", "error", "-select_streams", "v:0", "-show_streams", "-show_format", "-of", "json"]
    probe = subprocess.run([*args, _url(path)], capture_output=True, text=True, check=False)
    streams = json.loads(probe.stdout or "{}").get("streams", [])
    if probe.returncode or not streams:
        raise _no_video(path, probe.stderr or _("it contains no video stream, perhaps only sound"))
    stream, container = streams[0], json.loads(probe.stdout).get("format", {})
    rate = _fraction(stream.get("avg_frame_rate")) or _fraction(stream.get("r_frame_rate")) or Fraction(25)
    stated = _count(stream.get("nb_frames"))
    seconds = _fraction(stream.get("duration")) or _fraction(container.get("duration"))
    frames = round(seconds * rate) if stated is None and seconds else stated
    return Video(path, rate, frames, stated if container.get("format_name") == "avi" else None)


class VideoReader:
    """Iterates once over the frames of a video, upright, with time stamps.

    Attributes:
        damage: set after the last frame: why frames are missing or may be wrong; None: no damage was detected.
    """

    def __init__(self, video: Video) -> None:
        self.video = video
        self.damage: str | None = None

    def __iter__(self) -> Iterator[tuple[float, NDArray[np.uint8]]]:
        """Yield (seconds, (H, W, 3) frame); seconds increase, from the start of the file.

        The first frame may be later than 0, for example if the sound begins before it.

        Raises:
            DataError: the video has no frames.
        """
        video, ticks, position = self.video, -1, 0
        # The filter writes the time of each frame to a file before the frame reaches the pipe.
        filters = f"settb=1/{_TICKS},metadata=add:key=a:value=b,metadata=print:file=times:direct=1"
        args = ["-nostdin", "-i", _url(video.path.absolute()), "-map", "0:v:0", "-fps_mode", "passthrough"]
        # PPM states the size of each frame, which differs from the header's for rotated videos. rgb24, since ffmpeg
        # would write 16 bits for videos with more than 8.
        args += ["-vf", filters, "-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "pipe:1"]

        def end(stderr: str, failed: bool) -> None:
            if ticks < 0:
                raise _no_video(video.path, stderr if failed else _("it contains no frames"))
            if stderr or failed:
                self.damage = _shorten(stderr)
            elif video.stated is not None and position < video.stated - _LATE_FRAMES:
                self.damage = _("its header states {count} frames").format(count=video.stated)

        with (
            tempfile.TemporaryDirectory() as folder,
            (Path(folder) / "times").open("w+b") as times,
            _ffmpeg(args, "stdout", end, folder) as pipe,
        ):
            while (frame := _read_ppm(pipe)) is not None:
                stamp = _read_ticks(times)
                ticks = max(ticks + 1, round(ticks + _TICKS / video.rate) if stamp is None else stamp)
                position = round(ticks * video.rate / _TICKS) + 1
                yield ticks / _TICKS, frame


@contextmanager
def _ffmpeg(
    args: Sequence[str], pipe: Literal["stdin", "stdout"], end: Callable[[str, bool], None], folder: str | None = None
) -> Iterator[IO[bytes]]:
    """A context with a pipe from or to ffmpeg.

    Args:
        end: called with ffmpeg's error output and whether it failed; not after an error in the context, which kills
            ffmpeg.
        folder: the working directory of ffmpeg; None: the current one.
    """
    stdin, stdout = (subprocess.PIPE if pipe == name else None for name in ("stdin", "stdout"))
    args = ["ffmpeg", "-v", "error", *args]
    with tempfile.TemporaryFile() as stderr:
        with subprocess.Popen(args, stdin=stdin, stdout=stdout, stderr=stderr, cwd=folder) as process:
            try:
                yield getattr(process, pipe)
            except BrokenPipeError:
                pass  # ffmpeg has ended and reports the reason
            except BaseException:
                process.kill()
                raise
        stderr.seek(0)
        end(stderr.read().decode(errors="replace"), process.returncode != 0)


class Writer:
    """Sends frames to ffmpeg as an IVF stream, the simplest format with time stamps."""

    def __init__(self, pipe: IO[bytes], size_hw: tuple[int, int]) -> None:
        self._pipe = pipe
        height, width = size_hw
        pipe.write(struct.pack("<4sHHIHHIIQ", b"DKIF", 0, 32, 0, width, height, _TICKS, 1, 0))

    def add(self, seconds: float, frame: NDArray[np.uint8]) -> None:
        """Send a frame, (H, W, 3) RGB or (H, W) grey, the same kind for all frames; `seconds` must increase."""
        height, width = frame.shape[:2]
        head = b"P%d\n%d %d\n255\n" % (5 if frame.ndim == 2 else 6, width, height)
        self._pipe.write(struct.pack("<IQ", len(head) + frame.size, round(seconds * _TICKS)) + head)
        self._pipe.write(np.ascontiguousarray(frame).data)


@contextmanager
def written_video(
    path: Path, size_hw: tuple[int, int], like: Video, *, exact: bool, start: float = 0.0
) -> Iterator[Writer]:
    """A context that writes a video, in which frames keep their time stamps; the file is complete when it ends.

    Args:
        path: its suffix determines the container.
        size_hw: of the frames, px.
        like: the source video.
        exact: lossless grey values (FFV1); otherwise colour for viewing (H.264), with the sound of `like`.
        start: time of the first frame, s, from the start of `like`.
    Raises:
        OutputError: ffmpeg cannot write the video; the message has ffmpeg's reason.
    """
    args = ["-y", "-itsoffset", f"{start:.6f}", "-f", "ivf", "-c:v", "pgm" if exact else "ppm", "-i", "pipe:0"]
    if exact:
        args += ["-c:v", "ffv1", "-pix_fmt", "gray"]
    else:  # even sides, as players require
        args += ["-i", _url(like.path), "-map", "0:v", "-map", "1:a?", "-c:a", "copy", "-shortest"]
        args += ["-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-c:v", "libx264", "-crf", "18", "-pix_fmt", "yuv420p"]
        # Duration of the last frame, which has no successor.
        args += ["-bsf:v", f"setts=pts=PTS:dts=DTS:duration={float(1 / like.rate)}/TB"]
    args += ["-fps_mode", "passthrough", "-enc_time_base", "-1"]  # time stamps unchanged

    def end(stderr: str, failed: bool) -> None:
        if failed:
            line = _("{path}: ffmpeg cannot write this file ({reason})")
            raise OutputError(line.format(path=path, reason=_shorten(stderr)), path=path)

    with _ffmpeg([*args, _url(path)], "stdin", end) as pipe:
        yield Writer(pipe, size_hw)


def _read_ppm(pipe: IO[bytes]) -> NDArray[np.uint8] | None:
    """Read the next PPM image of a stream; None at the end of the stream, also within an image."""
    if pipe.readline() != b"P6\n":
        return None
    width, height = map(int, pipe.readline().split())
    pipe.readline()
    data = pipe.read(3 * width * height)
    return np.frombuffer(data, np.uint8).reshape(height, width, 3) if len(data) == 3 * width * height else None


def _read_ticks(times: IO[bytes]) -> int | None:
    """Read the next time stamp from ffmpeg's filter `metadata`; None: unknown."""
    while line := times.readline():
        if match := re.match(rb"frame:.*\bpts:(-?\d+)", line):
            return int(match[1])
        if line.startswith(b"frame:"):
            return None
    return None


def _count(text: Any) -> int | None:
    return int(text) if str(text).isdigit() else None


def _fraction(text: Any) -> Fraction | None:
    try:
        return Fraction(str(text)) or None
    except (ValueError, ZeroDivisionError):
        return None


def _url(path: Path) -> str:
    """A URL that ffmpeg reads as a file name, with any characters."""
    return f"file:{path}"


def _no_video(path: Path, stderr: str) -> DataError:
    return DataError(_("{path}: not a readable video ({reason})").format(path=path, reason=_shorten(stderr)), path=path)


def _shorten(stderr: str) -> str:
    """The last lines of ffmpeg's output, without object addresses."""
    lines = dict.fromkeys(re.sub(r"\[[^]]* @ 0x[0-9a-f]+\] *", "", line).strip() for line in stderr.splitlines())
    return "; ".join(line[-_LINE:] for line in [line for line in lines if line][-_LINES:])
