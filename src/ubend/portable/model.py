"""Exported models, run by onnxruntime without torch: images of any size -> masks, as `ubend predict` makes them.

H x W pixels of an image, h x w at the size of the network's input, K classes.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .class_table import IGNORED
from .contract import Contract, ImageModel, read_model
from .errors import ModelFileError, SettingError, missing_package
from .files import EXPORTED_SUFFIX
from .i18n import _
from .images import model_size, save_mask
from .input_checks import Image, take_pixels
from .raster import Header
from .resize import resize_logits, resize_pixels
from .session import Run, check_exported, open_session, read_exported, refuse_not_finite
from .tiling import Blender, TilePlan, TileSource, Tiling, plan_rows, plan_whole, read_row

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


class Model:
    """An exported model: `model("image.jpg").mask`. Made by `load`.

    Args:
        run: see `open_session`.
        contract: of the file.
        image_model: see `read_model`.
    Attributes:
        contract, image_model: the file's metadata.
        class_names: name of each class, in the order of the class index.
        colors: (red, green, blue) of each class, 0..255.
        sizing: size and channels of the images, see `ImageSizing`.
        dtype: of the images: uint8, uint16 or float32.
    """

    def __init__(self, run: Run, contract: Contract, image_model: ImageModel) -> None:
        self.contract, self.image_model = contract, image_model
        self.class_names, self.colors = image_model.names, image_model.colors
        self.sizing, self.dtype = image_model.sizing, image_model.dtype
        self._run, tiles = run, contract.tiles
        self._tiling = None
        if tiles.px:
            self._tiling = Tiling(tiles.px, tiles.overlap, tiles.multiple, tiles.margin, tiles.edge_px)

    def __call__(self, image: Image, *, probabilities: bool = False, header: Header | None = None) -> Prediction:
        """Predict one image.

        Args:
            image: a file, or (H, W) or (H, W, channels) values in the units of the training images (0..255 for 8 bit),
                with their dtype or float; masked values of a masked array are invalid pixels.
            probabilities: also return the probability of each class; 4 bytes per pixel and class.
            header: of the file, already checked by `inspect_file`; None: read it.
        Raises:
            DataError: the image is unreadable, empty, or differs in channels or bit depth from the model's, or its
                values or the resulting logits are not finite.
            SettingError: not enough memory.
        """
        loaded = take_pixels(image, self, header)
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

    def _predict(
        self, pixels: NDArray[Any], probabilities: bool
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        """(H, W) class index, and (K, H, W) probabilities if requested."""
        native_hw = pixels.shape[0], pixels.shape[1]
        mask = np.empty(native_hw, np.uint8)
        prob = np.empty((len(self.class_names), *native_hw), np.float32) if probabilities else None
        for rows, logits in self._compute_rows(pixels, native_hw):
            refuse_not_finite(bool(np.isfinite(logits).all()))
            native = resize_logits(logits, (rows.stop - rows.start, native_hw[1]))
            if prob is None:
                mask[rows] = _find_largest(native)
            else:
                prob[:, rows] = _softmax(native)
                mask[rows] = _find_largest(prob[:, rows])
        return mask, prob

    def _compute_rows(
        self, pixels: NDArray[Any], native_hw: tuple[int, int]
    ) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Rows of the native image and their (K, h, w) logits, from top to bottom, valid until the next item."""
        if self._tiling is not None:
            yield from self._merge(pixels, self._tiling.plan(native_hw))
            return
        small = resize_pixels(pixels, model_size(native_hw, self.sizing.size_px, self.sizing.keep_aspect))
        size_hw = small.shape[0], small.shape[1]
        multiple = self.contract.tiles.multiple if self.image_model.pads else 1
        plan = plan_whole(size_hw, (size_hw[0] + -size_hw[0] % multiple, size_hw[1] + -size_hw[1] % multiple))
        (row,) = plan_rows([TileSource.of_pixels(small, native_hw)], lambda _size_hw: plan)
        logits = self._forward([read_row(row)[1]])
        yield slice(0, native_hw[0]), logits[0, :, : size_hw[0], : size_hw[1]]

    def _merge(self, pixels: NDArray[Any], plan: TilePlan) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """The merged logits of all tiles; as many tiles as fit share a forward pass."""
        blender = Blender(plan, len(self.class_names))
        width, size = plan.input_hw[1], math.prod(plan.input_hw)
        waiting: list[tuple[int, int, NDArray[Any]]] = []
        left = plan.count
        for row in plan_rows([TileSource.of_pixels(pixels, (plan.rows.side, plan.columns.side))], lambda _size: plan):
            strip = read_row(row)[1]
            for column, start in enumerate(plan.columns.starts):
                waiting.append((row.number, column, strip[:, start : start + width]))
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


def load(path: Path | str, *, threads: int | None = None) -> Model:
    """Load an exported model.

    Args:
        path: a file that `ubend export` wrote.
        threads: of the CPU; None: `OMP_NUM_THREADS`, or all that this process may use.
    Raises:
        ModelFileError: it is missing, cut off, not exported by ubend, newer than this version, or holds what ubend does
            not write.
        MissingPackageError: onnxruntime cannot be loaded.
    """
    path = Path(path)
    if path.suffix.lower() != EXPORTED_SUFFIX:
        line = _("{path}: not an exported model (.onnx); `ubend export RUN` writes one")
        raise ModelFileError(line.format(path=path), path=path, key="model")
    data = read_exported(path)
    contract = check_exported(path, data)
    model = read_model(path, contract.model)
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_package(error) from error
    run = open_session(
        onnxruntime,
        path,
        data,
        dtype=model.dtype,
        classes=len(model.names),
        margin=contract.tiles.margin,
        threads=threads or _count_threads(),
    )
    return Model(run, contract, model)


def _count_threads() -> int:
    requested = os.environ.get("OMP_NUM_THREADS", "")
    if requested.isdecimal() and int(requested):
        return int(requested)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _find_largest(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(K, H, W) -> (H, W) index of the largest one; of equal ones, the first."""
    best, index = values[0].copy(), np.zeros(values.shape[1:], np.uint8)
    for number in range(1, len(values)):
        index[values[number] > best] = number
        np.maximum(best, values[number], out=best)
    return index


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    powers = np.exp(logits - logits.max(axis=0))
    return np.asarray(powers / powers.sum(axis=0))
