"""Videos, by the ffmpeg that is on the PATH: frames out, frames in. H x W px, RGB."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ubend.core.errors import DataError, OutputError, reason
from ubend.core.files import regular_file
from ubend.core.i18n import _

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")
_STEADY = 0.02  # the most that the mean rate and the file's own differ by; containers round times to milliseconds


@dataclass(frozen=True)
class Video:
    """What is known before a frame is read.

    Attributes:
        path: the file.
        rate: frames a second, exact.
        frames: how many; None: the file does not say.
        steady: whether all frames are as far apart; else some are shown again or left out, to make them so.
    """

    path: Path
    rate: Fraction
    frames: int | None
    steady: bool = True


def open_video(path: Path) -> Video:
    """Look at a video.

    Raises:
        DataError: ffmpeg is not installed, or this is no video.
    """
    if shutil.which("ffmpeg") is None or shutil.which("ffprobe") is None:
        raise DataError(_("{path}: reading videos needs ffmpeg on the PATH").format(path=path), path=path, key="ffmpeg")
    try:
        regular_file(path)
    except OSError as error:
        raise _no_video(path, reason(error)) from error
    words = ["ffprobe", "-v", "error", "-select_streams", "v:0", "-show_streams", "-show_format", "-of", "json"]
    found = subprocess.run([*words, _url(path)], capture_output=True, text=True, check=False)
    streams = json.loads(found.stdout or "{}").get("streams", [])
    if found.returncode or not streams:
        raise _no_video(path, found.stderr)
    stream = streams[0]
    mean, base = _fraction(stream.get("avg_frame_rate")), _fraction(stream.get("r_frame_rate"))
    steady = mean is None or base is None or abs(mean / base - 1) < _STEADY
    rate = (base if steady else mean) or mean or Fraction(25)
    frames = stream.get("nb_frames")
    if frames is None:
        seconds = stream.get("duration") or json.loads(found.stdout).get("format", {}).get("duration")
        frames = None if seconds is None else round(float(seconds) * rate)
    return Video(path, rate, None if frames is None else int(frames), steady)


def read_frames(video: Video, tell: Callable[[str], object] = lambda _said: None) -> Iterator[NDArray[np.uint8]]:
    """(H, W, 3) frames, upright, at a constant rate; one at a time.

    Args:
        tell: called at the end with what ffmpeg says of damage that it could pass over.
    Raises:
        DataError: the video cannot be read.
    """
    words = ["-nostdin", "-i", _url(video.path), "-map", "0:v:0"]
    words += ["-fps_mode", "passthrough"] if video.steady else ["-r", str(video.rate)]
    # PPM says each frame's size, which a turned video has in other order than its file says; of more than 8 bits
    # ffmpeg would make 16
    words += ["-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "pipe:1"]
    with _ffmpeg(words, "stdout", partial(_no_video, video.path), tell) as pipe:
        while (frame := _read_ppm(pipe)) is not None:
            yield frame


@contextmanager
def _ffmpeg(
    words: Sequence[str],
    pipe: Literal["stdin", "stdout"],
    refuse: Callable[[str], Exception],
    tell: Callable[[str], object] = lambda _said: None,
) -> Iterator[IO[bytes]]:
    """A pipe from or to ffmpeg, which is killed when the context is left by an error; where it fails itself, `refuse`
    of its words is raised, else `tell` is called with those that it has said."""
    stdin, stdout = (subprocess.PIPE if pipe == name else None for name in ("stdin", "stdout"))
    with tempfile.TemporaryFile() as said:
        with subprocess.Popen(["ffmpeg", "-v", "error", *words], stdin=stdin, stdout=stdout, stderr=said) as process:
            try:
                yield getattr(process, pipe)
            except BrokenPipeError:
                pass  # ffmpeg has ended, and says why
            except BaseException:
                process.kill()
                raise
        said.seek(0)
        text = said.read().decode(errors="replace")
        if process.returncode:
            raise refuse(text)
        if text:
            tell(_shorten(text))


class Writer:
    """Frames into ffmpeg's hands, one by one."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe

    def add(self, frame: NDArray[np.uint8]) -> None:
        """(H, W, 3) RGB, or (H, W) grey, as the video was begun."""
        self._pipe.write(np.ascontiguousarray(frame).data)


@contextmanager
def written_video(path: Path, size_hw: tuple[int, int], like: Video, *, exact: bool) -> Iterator[Writer]:
    """A video of `like`'s rate, which is whole when the context is left.

    Args:
        path: its suffix says the container.
        size_hw: of the frames, px.
        exact: grey values as they are (FFV1); else colour for the eye (H.264), with the sound of `like`.
    Raises:
        OutputError: ffmpeg cannot write it; its words.
    """
    height, width = size_hw
    words = ["-y", "-f", "rawvideo", "-pix_fmt", "gray" if exact else "rgb24"]
    words += ["-s", f"{width}x{height}", "-r", str(like.rate), "-i", "pipe:0"]
    if exact:
        words += ["-c:v", "ffv1", "-pix_fmt", "gray"]
    else:  # even sides, as players want them
        words += ["-i", _url(like.path), "-map", "0:v", "-map", "1:a?", "-c:a", "copy", "-shortest"]
        words += ["-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-c:v", "libx264", "-crf", "18", "-pix_fmt", "yuv420p"]

    def refuse(said: str) -> OutputError:
        return OutputError(
            _("{path}: ffmpeg cannot write it ({reason})").format(path=path, reason=_shorten(said)), path=path
        )

    with _ffmpeg([*words, _url(path)], "stdin", refuse) as pipe:
        yield Writer(pipe)


def _read_ppm(pipe: IO[bytes]) -> NDArray[np.uint8] | None:
    """The next picture of a stream of them; None at its end, also in the middle of one."""
    if pipe.readline() != b"P6\n":
        return None
    width, height = map(int, pipe.readline().split())
    pipe.readline()
    data = pipe.read(3 * width * height)
    return np.frombuffer(data, np.uint8).reshape(height, width, 3) if len(data) == 3 * width * height else None


def _fraction(text: Any) -> Fraction | None:
    try:
        return Fraction(str(text)) or None
    except (ValueError, ZeroDivisionError):
        return None


def _url(path: Path) -> str:
    """A name that ffmpeg takes for a file whatever is in it."""
    return f"file:{path}"


def _no_video(path: Path, said: str) -> DataError:
    return DataError(_("{path}: not a readable video ({reason})").format(path=path, reason=_shorten(said)), path=path)


def _shorten(said: str) -> str:
    return " ".join(said.split())[-300:]
