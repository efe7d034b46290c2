"""Masks, overlays and class shares for pictures."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from ubend.drawing.overlay import overlay_mask, to_rgb
from ubend.drawing.panels import save_png
from ubend.errors import DataError, OutputError
from ubend.files import write_text
from ubend.folders.naming import IMAGE_SUFFIXES
from ubend.inference.predictor import load, refuse_other_kind
from ubend.language import _
from ubend.masks.labels import background_class
from ubend.model.bundle import Bundle
from ubend.pictures.decode import read_header
from ubend.pictures.images import read_image, write_mask
from ubend.teller import Teller

_SHARES = "shares.csv"


def predict_files(
    model: Path | str, paths: Sequence[Path | str], out: Path | str, *, device: str | None = None, teller: Teller
) -> list[Path]:
    """Predict pictures; for NAME.jpg writes `NAME.png` (class indices with a palette, at the picture's own
    size), `NAME_overlay.png`, and one `shares.csv` for all.

    Args:
        model: a run folder or a model file.
        paths: pictures, or folders of pictures.
        out: folder for the masks; files in it are not overwritten.
    Returns:
        The mask files.
    Raises:
        DataError: no pictures, unreadable ones, or two of one name.
        OutputError: something of that name is there already, or the folder cannot be written.
    """
    predictor = load(model, device)
    pictures = list_pictures(paths)
    out = Path(out)
    targets = [out / f"{picture.stem}.png" for picture in pictures]
    _refuse_collisions(pictures, targets)
    _refuse_unfit(pictures, predictor.bundle)
    labels = predictor.labels
    teller.begin(_("predicting"), len(pictures))
    shares: dict[int, dict[str, float]] = {}
    for number, prediction in predictor.predict(pictures):
        shares[number] = prediction.shares()
        write_mask(targets[number], prediction.mask, labels)
        image = to_rgb(read_image(pictures[number], predictor.bundle.sizing.channels))
        overlay = overlay_mask(image, prediction.mask, labels.colors, background=background_class(labels.names))
        save_png(Image.fromarray(overlay), _overlay_path(targets[number]))
        teller.count(len(shares))
    teller.end()
    _write_shares(out / _SHARES, pictures, shares)
    _tell_shares(teller, pictures, shares)
    return targets


def list_pictures(paths: Iterable[Path | str]) -> list[Path]:
    """Files as they are; folders give the pictures in them, sorted by name."""
    pictures: list[Path] = []
    for path in (Path(p) for p in paths):
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != ".")
            if not found:
                raise DataError(_("{path}: no pictures in this folder").format(path=path))
            pictures += found
        elif path.exists():
            pictures.append(path)
        else:
            raise DataError(_("{path}: no such file").format(path=path))
    if not pictures:
        raise DataError(_("no pictures to predict; name files or folders"))
    return pictures


def _overlay_path(target: Path) -> Path:
    return target.with_name(f"{target.stem}_overlay.png")


def _refuse_unfit(pictures: list[Path], bundle: Bundle) -> None:
    """All pictures that cannot be read, or are not of the model's kind, at once, before anything is written."""
    problems: list[str] = []
    for picture in pictures:
        try:
            refuse_other_kind(picture, read_header(picture, bundle.sizing.channels), bundle)
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)


def _refuse_collisions(pictures: list[Path], targets: list[Path]) -> None:
    written = Counter([*targets, *map(_overlay_path, targets)])
    twice = [p for p, t in zip(pictures, targets, strict=True) if written[t] > 1 or written[_overlay_path(t)] > 1]
    if twice:
        names = ", ".join(sorted(map(str, twice))[:6])
        raise DataError(
            _(
                "pictures of one name would overwrite each other's mask or overlay: {names}; predict them into "
                "different --out folders"
            ).format(names=names)
        )
    there = [t for t in [*written, targets[0].with_name(_SHARES)] if t.exists()]
    if there:
        raise OutputError(
            _("{path} exists already, and {count} more; choose another --out").format(
                path=there[0], count=len(there) - 1
            )
        )


def _write_shares(path: Path, pictures: list[Path], shares: dict[int, dict[str, float]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", *shares[0]])
    for number, picture in enumerate(pictures):
        writer.writerow([picture, *(f"{value:.6f}" for value in shares[number].values())])
    write_text(path, text.getvalue())


def _tell_shares(teller: Teller, pictures: list[Path], shares: dict[int, dict[str, float]]) -> None:
    for number, picture in list(enumerate(pictures))[:10]:
        row = ", ".join(f"{name} {value:.1%}" for name, value in shares[number].items())
        teller.say(f"{picture.name}: {row}")
    if len(pictures) > 10:
        teller.say(_("... and {count} more, in shares.csv").format(count=len(pictures) - 10))
    whole = {name for row in shares.values() for name, value in row.items() if value == 1.0}
    if len(whole) == 1 and all(1.0 in row.values() for row in shares.values()):
        teller.say(
            _(
                "WARNING: every pixel of every picture is {name}; are these pictures like those it was trained on?"
            ).format(name=whole.pop())
        )
