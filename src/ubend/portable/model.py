"""Exported models, run by onnxruntime without torch: images of any size -> masks, as `ubend predict` makes them.

H x W pixels of an image, h x w at the size of the network's input, K classes.
"""

import importlib
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .class_table import IGNORED, ClassTable
from .contract import Contract, ImageModel, Tiles, read_model
from .engines import open_engine
from .ensemble import PLAIN, Member, View, average, choose_views, refuse_unlike
from .errors import ModelFileError, SettingError, missing_package
from .files import EXPORTED_SUFFIX
from .i18n import _
from .images import model_size, save_mask
from .input_checks import Image, take_pixels
from .mask_predictor import MaskPredictor, PredictionOptions, make_mask_predictor
from .objects import LIBRARIES, Method, Objects, choose_method, refuse_missing, separate
from .predictors import MaskResult
from .resize import resize_logits, resize_pixels
from .session import Run, check_exported, read_exported, refuse_not_finite
from .softmax import find_largest, softmax
from .tile_options import DEFAULT_OVERLAP, refuse_wrong_tiles
from .tiling import (
    Blender,
    TilePlan,
    TileSource,
    Tiling,
    plan_rows,
    plan_whole,
    read_row,
)

_TILE_BATCH_PIXELS = 2**20  # of tiles in one forward pass, as in ubend on a CPU


@dataclass(frozen=True, eq=False)
class Prediction:
    """The prediction for one image, at native size.

    Attributes:
        mask: (H, W) uint8 class index, an index into `class_names`; 255 where the image is invalid: nodata, alpha 0,
            NaN.
        class_names: name of each class.
        colors: (red, green, blue) of each class, 0..255.
        probabilities: (K, H, W) float32, with a sum of 1 over K, and 0 where the image is invalid; None: not requested.
    """

    mask: NDArray[np.uint8]
    class_names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    probabilities: NDArray[np.float32] | None = None

    def save(self, path: Path | str) -> None:
        """Write the mask as PNG: the values are class indices, the palette has the class colours.

        Args:
            path: must end in .png; an existing file is replaced, and missing folders are created.
        Raises:
            OutputError: the path does not end in .png, or the file cannot be written.
        """
        save_mask(Path(path), self.mask, self.colors)

    def objects(self, method: Method | None = None, *, min_area: int = 1) -> Objects:
        """Separate and number the objects in the mask; needs the extra `objects`.

        Args:
            method: how touching objects are separated: `contour`: by the class of that name; `parts`: connected
                regions; `distance`: at narrow places; None: chosen by the class names.
            min_area: leave out smaller objects, px, 1 or more.
        Returns:
            `ids`, (H, W) uint32: 0, or the number of an object; `classes`: the class index of object 1, 2, ...
        Raises:
            SettingError: the method does not fit the classes.
            MissingPackageError: the extra `objects` is not installed.
        """
        refuse_missing(LIBRARIES, "ubend-runtime[objects]")
        return separate(self.mask, self.class_names, method or choose_method(self.class_names), min_area)


class Model:
    """An exported model: `model("image.jpg").mask`. Made by `load`.

    Args:
        run: see `open_session`.
        contract: of the file.
        image_model: see `read_model`.
        tiles: side of the tiles in px; 0: whole images; None: as exported.
        overlap: of neighbouring tiles, as a fraction of the side, 0 <= overlap < 1; None: as exported.
    Attributes:
        contract, bundle: the file's metadata.
        class_names: name of each class, in the order of the class index.
        colors: (red, green, blue) of each class, 0..255.
        labels: both of these.
        sizing: size and channels of the images, see `ImageSizing`.
        dtype: of the images: uint8, uint16 or float32.
        tiling: how images are cut into tiles; None: they are not.
    """

    def __init__(
        self,
        run: Run,
        contract: Contract,
        image_model: ImageModel,
        *,
        tiles: int | None = None,
        overlap: float | None = None,
    ) -> None:
        self.contract, self.bundle = contract, image_model
        self.labels: ClassTable = image_model
        self.class_names, self.colors = image_model.names, image_model.colors
        self.sizing, self.dtype = image_model.sizing, image_model.dtype
        self._run, self.tiling = run, _make_tiling(contract.tiles, image_model, tiles, overlap)

    def __call__(self, image: Image, *, probabilities: bool = False) -> Prediction:
        """Predict one image.

        Args:
            image: a file, or (H, W) or (H, W, channels) values in the units of the training images (0..255 for 8 bit),
                with their dtype or float; masked values of a masked array are invalid pixels.
            probabilities: also return the probability of each class; 4 bytes per pixel and class.
        Raises:
            DataError: the image is unreadable, empty, or differs in channels or bit depth from the model's, or its
                values or the resulting logits are not finite.
            SettingError: not enough memory.
        """
        loaded = take_pixels(image, self)
        try:
            mask, prob = self._predict(loaded.pixels, probabilities)
        except MemoryError as error:
            height, width = loaded.pixels.shape[:2]
            line = _("out of memory with one image of {width}x{height} px; give a smaller image")
            raise SettingError(line.format(width=width, height=height), key="device") from error
        if loaded.invalid is not None:
            mask[loaded.invalid] = IGNORED
            if prob is not None:
                prob[:, loaded.invalid] = 0
        return Prediction(mask, self.class_names, self.colors, prob)

    def predict(self, images: Iterable[Image], *, probabilities: bool = False) -> Iterator[tuple[int, Prediction]]:
        """Predict several images: yields (index, prediction) in order; see `__call__`."""
        for index, image in enumerate(images):
            yield index, self(image, probabilities=probabilities)

    def predict_rows(self, source: TileSource, *, probabilities: bool) -> Iterator[tuple[slice, MaskResult]]:
        """Predict an image that is read by rows, from top to bottom: yields (row range, result); only with tiles."""
        for rows, logits in self._compute_rows(source):
            refuse_not_finite(bool(np.isfinite(logits).all()))
            yield rows, MaskResult(find_largest(logits), softmax(logits) if probabilities else None)

    def _predict(
        self, pixels: NDArray[Any], probabilities: bool
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        """(H, W) class index, and (K, H, W) probabilities if requested."""
        native_hw = pixels.shape[0], pixels.shape[1]
        mask = np.empty(native_hw, np.uint8)
        prob = np.empty((len(self.class_names), *native_hw), np.float32) if probabilities else None
        if self.tiling is None:
            pixels = resize_pixels(pixels, model_size(native_hw, self.sizing.size_px, self.sizing.keep_aspect))
        for rows, logits in self._compute_rows(TileSource.of_pixels(pixels, native_hw)):
            refuse_not_finite(bool(np.isfinite(logits).all()))
            native = resize_logits(logits, (rows.stop - rows.start, native_hw[1]))
            if prob is None:
                mask[rows] = find_largest(native)
            else:
                prob[:, rows] = softmax(native)
                mask[rows] = find_largest(prob[:, rows])
        return mask, prob

    def _compute_rows(self, source: TileSource) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Rows of the native image and their (K, h, w) logits, from top to bottom, valid until the next item."""
        height, width = source.size_hw
        if self.tiling is not None:
            yield from self._merge(source, self.tiling.plan(source.size_hw))
            return
        multiple = self.contract.tiles.multiple if self.bundle.pads else 1
        plan = plan_whole(source.size_hw, (height + -height % multiple, width + -width % multiple))
        (row,) = plan_rows([source], lambda _size_hw: plan)
        logits = self._forward([read_row(row)[1]])
        yield slice(0, source.native_hw[0]), logits[0, :, :height, :width]

    def _merge(self, source: TileSource, plan: TilePlan) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """The merged logits of all tiles; as many tiles as fit share a forward pass."""
        blender = Blender(plan, len(self.class_names))
        width, size = plan.input_hw[1], math.prod(plan.input_hw)
        waiting: list[tuple[int, int, NDArray[Any]]] = []
        left = plan.count
        for row, strip in map(read_row, plan_rows([source], lambda _size: plan)):
            for column, start in enumerate(plan.columns.starts):
                waiting.append((row.row_index, column, strip[:, start : start + width]))
                left -= 1
                if left and (len(waiting) + 1) * size <= _TILE_BATCH_PIXELS:
                    continue
                logits = self._forward([tile for _row, _column, tile in waiting])
                for (number, place, _tile), values in zip(waiting, logits, strict=True):
                    if (done := blender.add(number, place, values)) is not None:
                        yield done
                waiting = []

    def _forward(self, images: list[NDArray[Any]]) -> NDArray[np.float32]:
        """(N, K, h, w) logits of (h, w, channels) values."""
        batch = np.stack(images).transpose(0, 3, 1, 2)
        if batch.dtype != self.dtype:  # floats, which integers of more than 8 bits become, too
            batch = (np.rint(batch) if self.dtype != "float32" else batch).astype(self.dtype)
        return self._run(np.ascontiguousarray(batch))


class ModelEnsemble:
    """Several models with the interface of `Model`; all models have equal weight, and all views of a model.

    Args:
        members: models with the same classes in the same order; sizes and channels may differ.
    Attributes:
        members: as given.
        class_names: name of each class, in the order of the class index.
        colors: (red, green, blue) of each class, 0..255.
    """

    def __init__(self, members: Sequence[Member[Model]]) -> None:
        self.members = list(members)
        self.class_names, self.colors = members[0].predictor.class_names, members[0].predictor.colors

    def __call__(self, image: Image, *, probabilities: bool = False) -> Prediction:
        """Predict one image; for arguments and errors see `Model`."""
        mask, prob, _pixels = average(image, self.members)
        return Prediction(mask, self.class_names, self.colors, prob if probabilities else None)

    def predict(self, images: Iterable[Image], *, probabilities: bool = False) -> Iterator[tuple[int, Prediction]]:
        """Predict several images: yields (index, prediction) in order."""
        for index, image in enumerate(images):
            yield index, self(image, probabilities=probabilities)


def load(
    model: Path | str | Sequence[Path | str],
    *,
    tta: bool = False,
    tiles: int | None = None,
    overlap: float | None = None,
    threads: int | None = None,
) -> Model | ModelEnsemble:
    """Load one or several exported models; probabilities of several are averaged.

    Args:
        model: a file that `ubend export` wrote; or several with the same classes.
        tta: test-time augmentation: average over the image and its mirror image, or over all eight rotations and
            flips if the model was trained with these.
        tiles: side of the tiles in px, at native scale; 0: whole images; None: as the model was trained.
        overlap: overlap between neighbouring tiles, as a fraction of the tile's side, 0 <= overlap < 1; None: as
            exported.
        threads: of the CPU; None: `OMP_NUM_THREADS`, or all that this process may use.
    Raises:
        ModelFileError: a file is missing, cut off, not exported by ubend, newer than this version, holds what ubend
            does not write, or differs from the others in classes or bit depth.
        SettingError: no model is given, `tiles` or `overlap` is out of range, or the model takes no other tiles.
        MissingPackageError: onnxruntime, or OpenVINO if a file is for it, cannot be loaded.
    """
    paths = [model] if isinstance(model, str | Path) else list(model)
    models = [load_file(Path(path), tiles=tiles, overlap=overlap, threads=threads) for path in paths]
    refuse_unlike(paths, models)
    if len(models) == 1 and not tta:
        return models[0]
    return ModelEnsemble([Member(each, _find_views(each.bundle) if tta else PLAIN) for each in models])


def load_file(
    path: Path, *, tiles: int | None = None, overlap: float | None = None, threads: int | None = None
) -> Model:
    """Load one exported model; for arguments and errors see `load`."""
    if path.suffix.lower() != EXPORTED_SUFFIX:
        line = _("{path}: not an exported model (.onnx); `ubend export RUN` writes one")
        raise ModelFileError(line.format(path=path), path=path, key="model")
    data = read_exported(path)
    contract = check_exported(path, data)
    model = read_model(path, contract)
    run = open_engine(
        _import_engine,
        path,
        data,
        contract,
        dtype=model.dtype,
        classes=len(model.names),
        threads=threads or _count_threads(),
    )
    return Model(run, contract, model, tiles=tiles, overlap=overlap)


def load_mask_predictor(
    model: Path | str, options: PredictionOptions, *, threads: int | None = None
) -> MaskPredictor[Model]:
    """Load the models; for arguments and errors see `load` and `make_mask_predictor`."""
    models = [model, *options.models]
    base = load(models, tta=options.tta, tiles=options.tiles, overlap=options.overlap, threads=threads)
    members = base.members if isinstance(base, ModelEnsemble) else [Member(base)]
    return make_mask_predictor(base, members, models, options)


def _find_views(bundle: ImageModel) -> Sequence[View]:
    return choose_views(bundle.orientation) if bundle.flips else PLAIN


def _make_tiling(exported: Tiles, bundle: ImageModel, tiles: int | None, overlap: float | None) -> Tiling | None:
    """How images are cut; for arguments and errors see `load`."""
    refuse_wrong_tiles(tiles, overlap)
    if tiles is None:
        tiles = exported.px
    if exported.margin and not tiles:
        line = _("--tiles: this exported model takes tiles; leave --tiles out, or use the run itself")
        raise SettingError(line, key="--tiles")
    if bundle.mirrors and tiles and not exported.margin:
        raise SettingError(
            _("--tiles: this exported model takes whole images; leave --tiles out, or use the run itself"),
            key="--tiles",
        )
    if not tiles:
        return None
    if overlap is None:
        overlap = exported.overlap if exported.px else DEFAULT_OVERLAP
    return Tiling(tiles, 0.0 if exported.margin else overlap, exported.multiple, exported.margin, exported.edge_px)


def _import_engine(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise missing_package(error) from error


def _count_threads() -> int:
    requested = os.environ.get("OMP_NUM_THREADS", "")
    if requested.isdecimal() and int(requested):
        return int(requested)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
