"""Check a data set before training: describe it, draw it, and write it as editable files."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ubend.core.autoconfig import percent
from ubend.core.device import pick_device, set_up
from ubend.core.errors import OutputError
from ubend.core.files import default_cache, read_text, refuse_existing, write_text
from ubend.core.i18n import _, ngettext
from ubend.core.plan import Choice
from ubend.core.progress import Reporter
from ubend.core.settings import Settings, change_settings, dump_toml
from ubend.dataset.dataset import Dataset, open_dataset
from ubend.dataset.object_widths import describe_narrow
from ubend.doctor.finding_text import report_quick_checks
from ubend.evaluation.caveats import describe_few
from ubend.labels.class_table import LabelMap
from ubend.labels.label_values import format_values
from ubend.labels.value_table import write_table
from ubend.layouts.pairs import SPLITS
from ubend.portable.printable import shell_word
from ubend.tasks.show import draw_pairs

# The choices that `fit` prints: what decides about scores and time most, and what people most often set themselves.
_SHOWN_CHOICES = {"data.folds", "data.size", "data.resize", "model.encoder", "augment.orientation", "train.epochs"}
_SHOWN_CHOICES |= {"model.pretrained", "train.loss"}
_STAMP = "# as written by ubend: "  # digest of all lines below and of split.csv; shows whether they were edited


def report_dataset(reporter: Reporter, data: Dataset) -> None:
    """Report how a folder is read."""
    counts = {split: len(data.indices(split)) for split in SPLITS}
    reporter.report(_("{folder}: {layout}").format(folder=data.folder.root, layout=data.folder.layout))
    reporter.report(_("images: {train} training, {val} validation, {test} test").format(**counts))
    reporter.report(_describe_images(data))
    mapping = data.labels.describe()
    if data.labels.ignored:
        ignored = format_values(data.labels.ignored, data.labels.kind)
        mapping += _(", {values} -> not scored").format(values=ignored)
    reporter.report(_("mask values: {mapping}").format(mapping=mapping))
    pixels = data.store.class_pixels[:, : data.labels.classes]
    total = max(1, int(pixels.sum()))
    shares = [
        ngettext("{name} {share} (in {count} image)", "{name} {share} (in {count} images)", images).format(
            name=name, share=percent(all_pixels / total), count=images
        )
        for name, all_pixels, images in zip(
            data.labels.names, pixels.sum(axis=0).tolist(), (pixels > 0).sum(axis=0).tolist(), strict=True
        )
    ]
    reporter.report(_("class shares: {shares}").format(shares=", ".join(shares)))
    for remark in data.remarks:
        reporter.report(_("note: {remark}").format(remark=remark))
    for line in [*data.describe_extremes(), *describe_narrow(data.widths, data.input_format.size)]:
        reporter.report(line)


def describe_choices(choices: Sequence[Choice], run: Path) -> list[str]:
    """The main automatic choices and all that replace a given value, with reasons, and where the others are listed."""
    listed = [choice for choice in choices if choice.replaces or choice.key in _SHOWN_CHOICES]
    lines = [_("chosen: {choice}").format(choice=choice.line()) for choice in listed]
    if count := len(choices) - len(listed):
        line = ngettext(
            "chosen: {count} other setting; `ubend info {run}` lists it with the reason",
            "chosen: {count} other settings; `ubend info {run}` lists them with the reasons",
            count,
        )
        lines.append(line.format(count=count, run=run))
    return lines


def _describe_images(data: Dataset) -> str:
    sizes = data.store.native_hw
    low, middle, high = (np.quantile(sizes, q, axis=0, method="nearest") for q in (0, 0.5, 1))
    texts = [f"{w}x{h}" for h, w in (low, middle, high)]
    size = (
        texts[0]
        if len(set(texts)) == 1
        else _("{low} to {high}, median {middle}").format(low=texts[0], high=texts[2], middle=texts[1])
    )
    line = ngettext(
        "sizes: {size} px (width x height); {channels} channel of {dtype}",
        "sizes: {size} px (width x height); {channels} channels of {dtype}",
        data.store.channels,
    )
    return line.format(size=size, channels=data.store.channels, dtype=data.store.dtype)


def describe_data(
    settings: Settings, out: Path, *, count: int = 8, show: bool = False, reporter: Reporter | None = None
) -> Path:
    """Read a folder as `fit` does, report it, and write its settings to files.

    Args:
        settings: only the section `data` and the seed are used; `data.folder` names the folder.
        out: the output folder: `data.toml`, which `fit` accepts instead of the folder, `split.csv`, and
            `samples.png`, a grid of images with masks.
        count: images in the grid.
        show: also display it.
    Raises:
        DataError: the folder cannot be read.
        OutputError: `data.toml` or `split.csv` exists and was edited, or another file exists.
    """
    path = out / "data.toml"
    if path.exists():
        _refuse_edited(path, out / "split.csv")
    else:
        refuse_existing(out / name for name in ("split.csv", "samples.png", "skipped.csv"))
    set_up(pick_device("cpu"), False)  # freed memory is kept: reading takes and frees much
    device = pick_device(settings.device).type  # the size that `fit` chooses depends on it
    with reporter or Reporter() as log:
        data = open_dataset(settings, device, default_cache(), log)
        report_dataset(log, data)
        for choice in data.input_format.choices:
            log.report(_("chosen: {choice}").format(choice=choice.line()))
        for subset in SPLITS[1:]:
            images = len(data.indices(subset))
            for line in describe_few(images, subset) if images else ():  # that there is no test split is reported above
                template = _("{note}; add images, or increase this split: --set data.{split}_share=0.3")
                if subset in {pair.split for pair in data.folder.pairs}:
                    template = _("{note}; add images, or move more of them to {split}")
                log.report(template.format(note=line, split=subset))
        for line in _describe_unnamed(data.labels):
            log.report(line)
        report_quick_checks(log, data, settings)
        if data.skipped or data.folder.skipped:
            write_text(out / "skipped.csv", data.skipped_table())
        draw_pairs(data.folder.pairs, data.labels, data.store.channels, out / "samples.png", count=count, show=show)
        split, text = data.split_table(), _write_data_files(settings, data, out)
        write_text(out / "split.csv", split)
        write_text(path, f"{_STAMP}{_digest(text + split)}\n{text}")
        log.report(
            _(
                "check {image}; if anything is wrong, edit {file} and draw it again with `ubend preview {file}`; then "
                "train with `ubend fit {file}`"
            ).format(image=out / "samples.png", file=shell_word(path))
        )
    return path


def _describe_unnamed(labels: LabelMap) -> list[str]:
    """A note on how to name classes that have numbers alone, and how to leave one out of the scores."""
    unnamed = [i for i, name in enumerate(labels.names) if re.fullmatch(r"class \d+", name) and labels.codes[i]]
    if len(unnamed) < 2:
        return []
    value = format_values(labels.codes[unnamed[-1]][:1], labels.kind)
    line = _(
        "note: {count} classes have no names; --classes NAME,NAME,... names all of them; a --values that lists all "
        "values, with {value}=ignored, leaves one out of training and scores"
    )
    return [line.format(count=len(unnamed), value=value)]


def _write_data_files(settings: Settings, data: Dataset, out: Path) -> str:
    """The section `data` of the settings as TOML, in which the scan's findings replace open settings."""
    described: Mapping[str, Any] = {
        "data.split": str((out / "split.csv").resolve()),
        "data.values": write_table(data.labels),
        "data.channels": data.store.channels,
    }
    return dump_toml(change_settings(settings, described), ("data",))


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def _refuse_edited(path: Path, split: Path) -> None:
    """Fail if the files of an earlier call were edited.

    Raises:
        OutputError: they were.
    """
    try:
        stamp, _newline, rest = read_text(path).partition("\n")
        written = rest + (read_text(split) if split.exists() else "")
    except OSError as error:
        raise OutputError(
            _("cannot read {path}: {reason}; choose another --out").format(path=path, reason=error),
            path=path,
            key="--out",
        ) from error
    if stamp != f"{_STAMP}{_digest(written)}":
        raise OutputError(
            _(
                "{path} or {split} was edited; draw it with `ubend preview {path}`, train with `ubend fit {path}`, or "
                "choose another --out"
            ).format(path=shell_word(path), split=split.name),
            path=path,
            key="--out",
        )
