"""Worked examples of three fields of application: medicine, satellites, driving.

Each draws its images, or reads given ones, trains, scores every class, draws predictions, and shows the specifics of
the field: an intensity window on 16-bit values, and a scan; bands, an index and a georeference; many classes, some of
them rare.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ubend.core.errors import DataError
from ubend.core.files import refuse_existing_results
from ubend.core.i18n import _, ngettext
from ubend.core.progress import Reporter
from ubend.dataset.store import read_class_map
from ubend.drawing.panels import draw_grid, show_image
from ubend.inference.predictor import Predictor, load
from ubend.io.images import read_image
from ubend.io.scans import PRESETS, IntensityWindow, read_scan
from ubend.layouts.pairs import Pair
from ubend.portable.images import save_png
from ubend.portable.mask_predictor import PredictionOptions
from ubend.portable.overlay import color_mask, to_rgb
from ubend.portable.row_windows import TiffRowReader
from ubend.tasks.evaluate import read_run_pairs
from ubend.tasks.fit import fit
from ubend.tasks.predict import predict_paths
from ubend_lessons import driving, medicine, satellite
from ubend_lessons.plain_unet import PLAIN_UNET
from ubend_lessons.variants import SilentReporter

# A minute on two cores: many short steps with a high learning rate. Drawn images vary enough without augmentation.
_QUICK: dict[str, Any] = {
    **PLAIN_UNET,
    "augment.kind": "none",
    "model.width": 8,
    "train.batch": 4,
    "train.epochs": 20,
    "train.learning_rate": 1e-2,
    "train.warmup": 0.1,
    "train.ema_decay": 0.98,
}
# For rare classes, which the settings above find only by chance: a lesion has one pixel of 200, a person one of 40.
_LESION: dict[str, Any] = {"train.class_weights": [1, 2, 8], "train.epochs": 32, "train.learning_rate": 5e-3}
_ON_STREET: dict[str, Any] = {"train.class_weights": [1, 1, 1, 1, 4, 4, 4, 4], "train.learning_rate": 5e-3}
_SHOWN = 3  # test images in the grid
_SCAN_SLICES, _SIZE_PX = 16, 96  # of the drawn scan
_GREEN = 0.4  # pixels with a larger vegetation index count as plants
_VEGETATION = ("field", "forest")
# Command lines for public sets.
_ON_PEOPLE = "    ubend lesson medicine --data Task09_Spleen --out spleen"
_ON_LAND = "    ubend fit landcover --patches --classes background,building,woodland,water,road --out runs/land"
_ON_STREETS = ("    ubend fit CamVid --out runs/camvid", "    ubend fit cityscapes --out runs/cityscapes")

View = Callable[[NDArray[Any]], NDArray[np.uint8]]


def teach_medicine(
    out: Path | str,
    *,
    folder: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str | None = None,
    show: bool = False,
    reporter: Reporter,
) -> dict[str, Any]:
    """Segment an organ and its lesions in slices of computed tomography (HU), and measure a scan in millilitres.

    Writes `window.png`, `predictions.png`, `run/` and, if nibabel is installed and the images are drawn, the scan
    `scan.nii.gz` and its mask in `scan_masks/`, into `out`.

    Args:
        folder: slices and masks like any folder of images; or NIfTI scans in imagesTr/ and labelsTr/, which are cut
            into slices; None: slices are drawn.
        settings: override the lesson's own if the images are drawn, else those of `fit`.
        device: cuda, mps or cpu; None: the fastest here.
    Returns:
        The scores, see `ubend.evaluate`.
    Raises:
        OutputError: `out` is not empty.
        DataError: the images cannot be used.
    """
    out = refuse_existing_results(out)
    drawn, slices = folder is None, out / "slices"
    if folder is None:
        medicine.draw_slices(slices, size_px=_SIZE_PX)
    elif (Path(folder) / "imagesTr").is_dir():
        medicine.cut_scans(Path(folder), slices)
    else:
        slices = Path(folder)
    chosen = {**(_QUICK | _LESION if drawn else {}), **(settings or {})}
    if slices == out / "slices":
        chosen = {"data.split": str(slices / "split.csv"), **chosen}

    def view(image: NDArray[Any]) -> NDArray[np.uint8]:
        return to_rgb(IntensityWindow(*PRESETS["abdomen"]).apply(image) if image.dtype != np.uint8 else image)

    scores, pairs, predictor = _train(slices, out, chosen, device, reporter)
    rows_reader = _draw_windows(pairs)
    save_png(rows_reader, out / "window.png")
    reporter.report(
        _(
            "{path}: slices with all of their values, and in the intensity window abdomen ({center:g}, {width:g}); the "
            "network uses all values"
        ).format(path=out / "window.png", center=PRESETS["abdomen"][0], width=PRESETS["abdomen"][1])
    )
    grid = _draw_predictions(pairs, predictor, out, view, reporter)
    if drawn:
        _predict_scan(out, device, reporter)
    reporter.report(
        _(
            "for real scans, download a task of the Medical Segmentation Decathlon (medicaldecathlon.com, CC BY-SA "
            "4.0) and run:"
        )
    )
    reporter.report(_ON_PEOPLE)
    _show(show, [rows_reader, grid])
    return scores


def teach_satellite(
    out: Path | str,
    *,
    folder: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str | None = None,
    show: bool = False,
    reporter: Reporter,
) -> dict[str, Any]:
    """Segment GeoTIFFs of six bands, compare with an index of two bands, and write georeferenced masks.

    Writes `predictions.png`, `run/`, and masks with the georeference of their images into `placed/`; arguments, result
    and errors are those of `teach_medicine`, without scans.
    """
    out = refuse_existing_results(out)
    drawn = folder is None
    if folder is None:
        folder = out / "fields"
        satellite.draw_fields(folder, size_px=_SIZE_PX)
    chosen = {**(_QUICK if drawn else {}), **(settings or {})}
    scores, pairs, predictor = _train(Path(folder), out, chosen, device, reporter)

    def view(image: NDArray[Any]) -> NDArray[np.uint8]:
        return to_rgb(np.ascontiguousarray(image[:, :, 2::-1]) if drawn else image)  # the first band is blue

    extra = None
    if drawn:
        _describe_index(pairs, predictor, reporter)
        extra = _("vegetation index"), lambda image: to_rgb(satellite.vegetation_index(image))
    grid = _draw_predictions(pairs, predictor, out, view, reporter, extra)
    _place_masks(out, pairs, device, reporter)
    reporter.report(
        _(
            "for real orthophotos, download LandCover.ai (landcover.ai, CC BY-NC-SA 4.0; large GeoTIFFs in images/ and "
            "masks/) and train on crops:"
        )
    )
    reporter.report(_ON_LAND)
    _show(show, [grid])
    return scores


def teach_driving(
    out: Path | str,
    *,
    folder: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str | None = None,
    show: bool = False,
    reporter: Reporter,
) -> dict[str, Any]:
    """Segment street scenes of eight classes, some of them rare; report the frequency and the scores of each.

    Writes `predictions.png` and `run/` into `out`; arguments, result and errors are those of `teach_medicine`, without
    scans.
    """
    out = refuse_existing_results(out)
    chosen = {**(_QUICK | _ON_STREET if folder is None else {}), **(settings or {})}
    if folder is None:
        folder = out / "streets"
        driving.draw_streets(folder, height_px=_SIZE_PX)
    scores, pairs, predictor = _train(Path(folder), out, chosen, device, reporter)
    grid = _draw_predictions(pairs, predictor, out, to_rgb, reporter)
    reporter.report(
        _(
            "for real streets, download CamVid (train/, train_labels/, ... and class_dict.csv; it states no licence, "
            "so ask before any use other than research) or Cityscapes (leftImg8bit/ and gtFine/; registration, no "
            "commercial use) and run:"
        )
    )
    for line in _ON_STREETS:
        reporter.report(line)
    _show(show, [grid])
    return scores


def _train(
    folder: Path, out: Path, settings: Mapping[str, Any], device: str | None, reporter: Reporter
) -> tuple[dict[str, Any], list[Pair], Predictor]:
    """Train, and report the scores; returns scores, test pairs, and the trained model."""
    reporter.report(_("training on {folder}").format(folder=folder))
    if weights := settings.get("train.class_weights"):
        said = _("rare classes have a larger weight in the cross entropy: train.class_weights = {weights}")
        reporter.report(said.format(weights=weights))
    run = out / "run"
    found = fit(folder, run, settings=settings, device=device, reporter=SilentReporter()).scores
    if found is None:
        raise KeyboardInterrupt
    scores = found.to_dict()
    _describe_classes(scores, reporter)
    pairs = [pair for pair in read_run_pairs(run) if pair.split == scores["part"]]
    if not pairs:
        raise DataError(_("no images to score"), path=run)
    return scores, pairs, load(run, device)


def _describe_classes(scores: Mapping[str, Any], reporter: Reporter) -> None:
    """Report each class's share of the scored pixels and its scores, the most frequent class first."""
    native = scores["native"]
    heads = [_("share"), _("Dice"), _("IoU")]
    wide = max(len(name) for name in native["true_share"]) + 2
    reporter.report(
        ngettext(
            "{count} image of the {split} split, scores per image at native size:",
            "{count} images of the {split} split, scores per image at native size:",
            native["pictures"],
        ).format(count=native["pictures"], split=scores["part"])
    )
    reporter.report(" " * wide + "".join(f"{head:>9}" for head in heads))
    for name, share in sorted(native["true_share"].items(), key=lambda item: -item[1]):
        cells = [native[kind]["per_image"][name] for kind in ("dice", "iou")]
        reporter.report(
            f"{name:<{wide}}{share:>9.2%}" + "".join("        -" if c is None else f"{c:>9.3f}" for c in cells)
        )


def _draw_predictions(
    pairs: Sequence[Pair],
    predictor: Predictor,
    out: Path,
    view: View,
    reporter: Reporter,
    extra: tuple[str, View] | None = None,
) -> Image.Image:
    """Draw input, optionally another view of it, truth and prediction to `predictions.png`."""
    labels, rows = predictor.labels, []
    chosen = _evenly(pairs)
    for pair, prediction in zip(chosen, (predictor(pair.image) for pair in chosen), strict=True):
        image = read_image(pair.image)
        truth = read_class_map(pair, (image.shape[0], image.shape[1]), labels).classes
        masks = [color_mask(mask, labels.colors) for mask in (truth, prediction.mask)]
        rows.append([view(image), *([extra[1](image)] if extra else []), *masks])
    headings = [_("input"), *([extra[0]] if extra else []), _("truth"), _("prediction")]
    names = [pair.name for pair in chosen]
    grid = draw_grid(rows, headings, names, legend=list(zip(labels.names, labels.colors, strict=True)))
    save_png(grid, out / "predictions.png")
    reporter.report(str(out / "predictions.png"))
    return grid


def _evenly(pairs: Sequence[Pair]) -> list[Pair]:
    """Evenly spaced pairs for the drawing."""
    return [pairs[int(place)] for place in np.unique(np.linspace(0, len(pairs) - 1, _SHOWN + 2)[1:-1].astype(int))]


def _draw_windows(pairs: Sequence[Pair]) -> Image.Image:
    """Draw slices with all of their values, from the smallest to the largest, and in the intensity window."""
    rows = []
    for pair in _evenly(pairs):
        image = read_image(pair.image)
        low, high = float(image.min()), float(image.max())
        whole = IntensityWindow((low + high) / 2, max(high - low, 1)).apply(image)
        rows.append([to_rgb(whole), to_rgb(IntensityWindow(*PRESETS["abdomen"]).apply(image))])
    return draw_grid(rows, [_("all values"), _("window")])


def _predict_scan(out: Path, device: str | None, reporter: Reporter) -> None:
    """Write a new drawn patient as NIfTI, predict it, and report the volumes found and the true ones."""
    if find_spec("nibabel") is None:
        reporter.report(_("no scan is written, because nibabel is not installed (pip install nibabel)"))
        return
    path = out / "scan.nii.gz"
    values, truth = medicine.draw_volume(0, 1000, _SCAN_SLICES, _SIZE_PX)
    medicine.write_nifti(path, values)
    masks = out / "scan_masks"
    predict_paths(out / "run", [path], masks, options=PredictionOptions(), reporter=SilentReporter(), device=device)
    found = medicine.measure_ml(read_scan(masks / "scan_mask.nii.gz").slices.astype(np.uint8))
    for name, true_ml in medicine.measure_ml(truth).items():
        reporter.report(
            _("{path}: {name} {found:.0f} ml found, {true:.0f} ml drawn").format(
                path=path, name=name, found=found[name], true=true_ml
            )
        )


def _describe_index(pairs: Sequence[Pair], predictor: Predictor, reporter: Reporter) -> None:
    """Report the share of pixels correctly classified as plants or not plants, by the index and by the network."""
    labels = predictor.labels
    plants = np.isin(np.arange(256), [labels.names.index(name) for name in _VEGETATION])
    by_index, by_network = [], []
    for number, prediction in predictor.predict([pair.image for pair in pairs]):
        pair, mask = pairs[number], prediction.mask
        image = read_image(pair.image)
        truth = plants[read_class_map(pair, mask.shape, labels).classes]
        by_index.append(((satellite.vegetation_index(image) > _GREEN) == truth).mean())
        by_network.append((plants[mask] == truth).mean())
    reporter.report(
        _(
            "plants or not plants: {index:.1%} of the pixels are correct by the vegetation index (above "
            "{threshold:g}), {network:.1%} by the network, which also separates fields from forests"
        ).format(index=float(np.mean(by_index)), threshold=_GREEN, network=float(np.mean(by_network)))
    )


def _place_masks(out: Path, pairs: Sequence[Pair], device: str | None, reporter: Reporter) -> None:
    """Predict masks of the test split, and report how many have the georeference of their image."""
    paths, masks = [pair.image for pair in pairs], out / "placed"
    predict_paths(out / "run", paths, masks, options=PredictionOptions(), reporter=SilentReporter(), device=device)
    placed = 0
    for path in paths:
        mask = masks / f"{path.stem}.tif"
        if path.suffix.lower() in (".tif", ".tiff") and mask.exists():
            with TiffRowReader(path) as image, TiffRowReader(mask) as made:
                placed += bool(image.georeference) and made.georeference == image.georeference
    reporter.report(
        _("{count} masks in {folder}, {placed} of them with the georeference of their image").format(
            count=len(paths), folder=masks, placed=placed
        )
    )


def _show(wanted: bool, images: Sequence[Image.Image]) -> None:
    for image in images if wanted else ():
        show_image(image)
