"""Drawings as text: what a page holds without files beside it."""

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ubend.portable.decode import without_warnings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_JPEG_QUALITY = 85  # of 1..95; outlines of one pixel stay visible, at a third of the size of PNG


def write_svg(figure: "Figure") -> str:
    """A figure of matplotlib as SVG, the same for the same figure; its text stays text."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ubend"}), without_warnings():
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def svg_uri(svg: str) -> str:
    """An SVG as a `data:` URI."""
    return _uri("image/svg+xml", svg.encode())


def image_uri(pixels: NDArray[np.uint8]) -> str:
    """(H, W, 3) uint8 as a `data:` URI of a JPEG."""
    data = io.BytesIO()
    options: dict[str, Any] = {"quality": _JPEG_QUALITY, "subsampling": 0}  # colours of outlines stay sharp
    Image.fromarray(pixels).save(data, "JPEG", **options)
    return _uri("image/jpeg", data.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
