"""The traditional methods: names, parameters, and the segmentation of an image."""

import difflib
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ubend.core.errors import MissingPackageError, SettingError
from ubend.core.i18n import _
from ubend_lessons.baselines.clusters import cluster_pixels
from ubend_lessons.baselines.edges import fill_edges
from ubend_lessons.baselines.pixels import Pixels
from ubend_lessons.baselines.regions import flood_basins, grow_regions, merge_graph, merge_superpixels
from ubend_lessons.baselines.thresholds import threshold_globally, threshold_locally

Method = Literal["otsu", "multi-otsu", "local", "kmeans", "growing", "watershed", "felzenszwalb", "slic", "canny"]
METHODS: tuple[Method, ...] = get_args(Method)
Parameters = Mapping[str, Any]


def describe_method(method: Method) -> str:
    """The translated description of a method, one line."""
    match method:
        case "otsu":
            return _("threshold: one for the whole image (Otsu 1979)")
        case "multi-otsu":
            return _("thresholds: two or three for the whole image (Otsu 1979)")
        case "local":
            return _("threshold: the mean brightness around each pixel")
        case "kmeans":
            return _("clusters of pixels by colour and texture (k-means)")
        case "growing":
            return _("regions: grown from seeds over similar pixels (Adams and Bischof 1994)")
        case "watershed":
            return _("regions: basins of the gradient (Vincent and Soille 1991)")
        case "felzenszwalb":
            return _("regions: merged in a graph of pixels (Felzenszwalb and Huttenlocher 2004)")
        case "slic":
            return _("regions: superpixels (Achanta et al. 2012), with similar neighbours merged")
        case "canny":
            return _("edges (Canny 1986), closed and filled")


def parse_method(word: str) -> Method:
    """A method by its name.

    Raises:
        SettingError: there is no such method; the error suggests the nearest one.
    """
    found = next((method for method in METHODS if method == word.lower()), None)
    if found is not None:
        return found
    near, known = difflib.get_close_matches(word.lower(), METHODS, 1, 0.4), ", ".join(METHODS)
    if not near:
        raise SettingError(_("no method {word}; available: {known}").format(word=word, known=known), key="method")
    raise SettingError(
        _("no method {word}; did you mean {near}? Available: {known}").format(word=word, near=near[0], known=known),
        key="method",
    )


def list_parameters(method: Method) -> list[dict[str, Any]]:
    """The combinations of parameters that are tried on the training split, as arguments of the method's function."""
    match method:
        case "otsu":
            return _combine(levels=[2], blur_px=[0.0, 2.0, 4.0])
        case "multi-otsu":
            return _combine(levels=[3, 4], blur_px=[0.0, 2.0, 4.0])
        case "local":
            return _combine(window_px=[31, 81, 161], offset=[-0.04, 0.0, 0.04])
        case "kmeans":
            return _combine(by=["color", "texture", "both"], clusters=[3, 6])
        case "growing":
            return _combine(by=["color", "texture", "both"], tolerance=[0.06, 0.12])
        case "watershed":
            return _combine(by=["color", "texture", "both"], blur_px=[2.0, 4.0])
        case "felzenszwalb":
            return _combine(by=["color", "texture", "both"], scale=[100.0, 400.0])
        case "slic":
            return _combine(by=["color", "texture", "both"], superpixels=[200], step=[0.0, 0.05])
        case "canny":
            return _combine(sigma_px=[1.0, 2.0, 4.0], share=[0.05, 0.1], close_px=[3.0])


def count_levels(method: Method, parameters: Parameters) -> int | None:
    """The number of segments, if segment numbers have the same meaning in every image (dark and light, outside and
    inside); otherwise None."""
    match method:
        case "otsu" | "multi-otsu":
            return int(parameters["levels"])
        case "local":
            return 2
        case "canny":
            return 3
        case _:
            return None


def segment(method: Method, pixels: Pixels, parameters: Parameters) -> NDArray[np.intp]:
    """Segment an image: (h, w) number of each pixel's segment, 0, 1, ...; for parameters see `list_parameters`."""
    match method:
        case "otsu" | "multi-otsu":
            return threshold_globally(pixels, **parameters)
        case "local":
            return threshold_locally(pixels, **parameters)
        case "kmeans":
            return cluster_pixels(pixels, **parameters)
        case "growing":
            return grow_regions(pixels, **parameters)
        case "watershed":
            return flood_basins(pixels, **parameters)
        case "felzenszwalb":
            return merge_graph(pixels, **parameters)
        case "slic":
            return merge_superpixels(pixels, **parameters)
        case "canny":
            return fill_edges(pixels, **parameters)


def refuse_missing() -> None:
    """Check that the libraries of the methods are installed.

    Raises:
        MissingPackageError: one is missing.
    """
    try:
        import skimage  # noqa: F401
        import sklearn  # noqa: F401
    except ImportError:
        raise MissingPackageError(
            _(
                "traditional methods need scikit-image and scikit-learn; install them with: "
                "pip install 'ubend[baselines]'"
            ),
            key="scikit-image",
        ) from None


def _combine(**choices: list[Any]) -> list[dict[str, Any]]:
    """All combinations of the values."""
    found: list[dict[str, Any]] = [{}]
    for name, values in choices.items():
        found = [{**one, name: value} for one in found for value in values]
    return found
