"""The page's JavaScript computes what the runtime computes: resizing, sizes, tiles and files, run in Node."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import ubend.exporting
from support.node import NEEDS_NODE, run_node, to_array, to_text
from ubend.portable.contract import CONTRACT, Contract, ImageModel, ImageSizing, Tiles
from ubend.portable.images import load_image, model_size, save_mask
from ubend.portable.model import Model
from ubend.portable.resize import resize_logits, resize_pixels

pytestmark = NEEDS_NODE
RANDOM = np.random.default_rng(21)
PREDICT = (Path(ubend.exporting.__file__).parent / "web" / "predict.js").as_posix()
LOAD = f'const ours = require("{PREDICT}");\n'
COLORS = ((0, 0, 0), (200, 30, 40), (20, 120, 230))


def draw_sizes(count: int, largest: int) -> list[list[int]]:
    return RANDOM.integers(1, largest, (count, 4)).tolist()


def test_resized_pixels(tmp_path: Path) -> None:
    """Every value, shrunk and enlarged, with sides of one pixel."""
    cases, images = [], []
    for height, width, new_height, new_width in [
        *draw_sizes(60, 90),
        *draw_sizes(5, 400),
        [1, 1, 7, 9],
        [200, 3, 5, 1],
        [3, 200, 1, 1],
        [40, 1, 7, 1],
    ]:
        channels = int(RANDOM.choice([1, 3]))
        images.append(RANDOM.integers(0, 256, (height, width, channels), np.uint8))
        if len(images) % 3 == 0:
            images[-1] = (images[-1] // 128 * 255).astype(np.uint8)  # the largest sums
        cases.append([to_text(images[-1]), height, width, channels, new_height, new_width])
    program = """return given.map(([data, height, width, channels, newHeight, newWidth]) =>
        text(ours.resizePixels({ data: bytes(data), height, width, channels }, newHeight, newWidth).data));"""
    answers = run_node(LOAD + program, cases, tmp_path)
    for image, (*_image, height, width), answer in zip(images, cases, answers, strict=True):
        wanted = resize_pixels(image, (height, width))
        np.testing.assert_array_equal(to_array(answer, "uint8").reshape(wanted.shape), wanted)


def test_resized_logits_and_their_classes(tmp_path: Path) -> None:
    cases, given = [], []
    for height, width, new_height, new_width in [*draw_sizes(40, 90), [30, 4, 9, 1], [1, 1, 5, 1], [5, 40, 80, 1]]:
        given.append(RANDOM.normal(size=(3, height, width)).astype(np.float32))
        cases.append([to_text(given[-1]), height, width, new_height, new_width])
    program = """return given.map(([logits, height, width, newHeight, newWidth]) => {
        const data = new Float32Array(bytes(logits).buffer);
        const columns = ours.resizeAxis(data, 3 * height, width, 1, newWidth, ours.sumFloats);
        const whole = ours.resizeAxis(columns, 3, height, newWidth, newHeight, ours.sumFloats);
        const mask = new Uint8Array(newHeight * newWidth);
        ours.writeClasses({ data, classes: 3, height, width }, newHeight, newWidth, mask, 0);
        return [text(whole), text(mask)];
    });"""
    answers = run_node(LOAD + program, cases, tmp_path)
    for logits, (*_logits, height, width), (whole, mask) in zip(given, cases, answers, strict=True):
        wanted = resize_logits(logits, (height, width))
        if width > 1:  # else the rows come first, as in the classes
            np.testing.assert_array_equal(to_array(whole, "float32").reshape(wanted.shape), wanted)
        np.testing.assert_array_equal(to_array(mask, "uint8").reshape(height, width), wanted.argmax(axis=0))


def test_equal_logits_give_the_first_class(tmp_path: Path) -> None:
    program = """const mask = new Uint8Array(4);
        const data = Float32Array.of(1, 2, 1, 3, 1, 2, 5, 3);
        ours.writeClasses({ data, classes: 2, height: 2, width: 2 }, 2, 2, mask, 0);
        return [...mask];"""
    assert run_node(LOAD + program, None, tmp_path) == [0, 0, 1, 0]


def test_sizes(tmp_path: Path) -> None:
    cases = [
        [height, width, {"size_px": size_px, "keep_aspect": keep_aspect}]
        for height, width, size_px, _other in RANDOM.integers(8, 3000, (200, 4)).tolist()
        for keep_aspect in (True, False)
    ]
    cases += [[1, 5000, {"size_px": 64, "keep_aspect": True}], [30, 7, {"size_px": None, "keep_aspect": True}]]
    answers = run_node(LOAD + "return given.map((one) => ours.modelSize(...one));", cases, tmp_path)
    for (height, width, sizing), answer in zip(cases, answers, strict=True):
        assert tuple(answer) == model_size((height, width), sizing["size_px"], sizing["keep_aspect"])


def make_logits(batch: NDArray[np.uint8], margin: int) -> NDArray[np.float32]:
    """Of three classes, sums and products of neighbours that are exact in float32."""
    values = batch.astype(np.float32)[:, 0]
    left = np.concatenate([values[:, :, :1], values[:, :, :-1]], axis=2)
    logits = np.stack([values, 255 - values, left], axis=1)
    side = slice(margin, -margin or None)
    return np.ascontiguousarray(logits[:, :, side, side])


NETWORK = """const run = (margin) => async (values, [, , height, width]) => {
    const dims = [1, 3, height - 2 * margin, width - 2 * margin];
    const data = new Float32Array(3 * dims[2] * dims[3]);
    for (let row = 0; row < dims[2]; row++) for (let column = 0; column < dims[3]; column++) {
        const line = (row + margin) * width;
        const value = values[line + column + margin];
        const three = [value, 255 - value, values[line + Math.max(column + margin - 1, 0)]];
        three.forEach((logit, index) => (data[(index * dims[2] + row) * dims[3] + column] = logit));
    }
    return { data, dims };
};
"""
PLANS = {
    "resized": (Tiles(px=0, overlap=0.0, multiple=16, margin=0, edge_px=0), ImageSizing(48, True, 3)),
    "squashed": (Tiles(px=0, overlap=0.0, multiple=16, margin=0, edge_px=0), ImageSizing(32, False, 3)),
    "native": (Tiles(px=0, overlap=0.0, multiple=1, margin=0, edge_px=0), ImageSizing(None, True, 3)),
    "tiles": (Tiles(px=64, overlap=0.25, multiple=16, margin=0, edge_px=0), ImageSizing(None, True, 3)),
    "half overlap": (Tiles(px=32, overlap=0.5, multiple=4, margin=0, edge_px=0), ImageSizing(None, True, 1)),
    "margin": (Tiles(px=36, overlap=0.25, multiple=4, margin=20, edge_px=4), ImageSizing(None, True, 1)),
}


@pytest.mark.parametrize("plan", PLANS)
def test_masks(plan: str, tmp_path: Path) -> None:
    """With a network that has no rounding of its own: the same class in every pixel."""
    tiles, sizing = PLANS[plan]
    contract = make_contract(tiles)
    image_model = ImageModel(
        ("a", "b", "c"), COLORS, sizing, "uint8", True, False, False, None, None, None, np.ones((2, sizing.channels))
    )
    model = Model(lambda batch: make_logits(batch, tiles.margin), contract, image_model)
    images, cases = [], []
    for height, width in [(1, 1), (40, 57), (130, 75), (64, 64), (3, 190)]:
        images.append(RANDOM.integers(0, 256, (height, width, sizing.channels), np.uint8))
        cases.append([to_text(images[-1]), height, width])
    about = {"names": ["a", "b", "c"], "sizing": sizing._asdict(), "tiles": vars(tiles), "channels": sizing.channels}
    program = """const masks = [];
    for (const [data, height, width] of given.images) {
        const image = { data: bytes(data), height, width, channels: given.about.channels };
        masks.push(text(await ours.predict(image, given.about, run(given.about.tiles.margin))));
    }
    return masks;"""
    answers = run_node(LOAD + NETWORK + program, {"about": about, "images": cases}, tmp_path)
    for image, answer in zip(images, answers, strict=True):
        wanted = model(image).mask
        np.testing.assert_array_equal(to_array(answer, "uint8").reshape(wanted.shape), wanted)


def make_contract(tiles: Tiles) -> Contract:
    return Contract(
        contract=CONTRACT,
        target="onnx",
        precision="fp32",
        mean=[],
        std=[],
        tiles=tiles,
        model={},
        licence={},
        scores=None,
        proof=None,
        ubend="",
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_alpha_and_the_file(channels: int, tmp_path: Path) -> None:
    """Grey by luma, transparent pixels, and the mask as PNG with the palette of the classes."""
    rgba = RANDOM.integers(0, 256, (20, 31, 4), np.uint8)
    rgba[:, :, 3] = np.where(rgba[:, :, 3] < 60, 0, rgba[:, :, 3])
    mask = RANDOM.integers(0, 3, (20, 31), np.uint8)
    mask[2, 3] = 255
    program = """const image = ours.fromRgba(bytes(given.rgba), 20, 31, given.channels);
    const png = await ours.encodeMask(bytes(given.mask), 20, 31, given.colors);
    return { data: text(image.data), invalid: text(image.invalid), png: text(png) };"""
    given = {"rgba": to_text(rgba), "mask": to_text(mask), "colors": COLORS, "channels": channels}
    answer = run_node(LOAD + program, given, tmp_path)
    Image.fromarray(rgba).save(tmp_path / "image.png")
    wanted = load_image(tmp_path / "image.png", channels)
    assert wanted.invalid is not None
    np.testing.assert_array_equal(to_array(answer["data"], "uint8").reshape(wanted.pixels.shape), wanted.pixels)
    np.testing.assert_array_equal(to_array(answer["invalid"], "uint8").reshape(20, 31), wanted.invalid)
    save_mask(tmp_path / "wanted.png", mask, COLORS)
    made, saved = Image.open(io.BytesIO(base64.b64decode(answer["png"]))), Image.open(tmp_path / "wanted.png")
    np.testing.assert_array_equal(np.asarray(made), np.asarray(saved))
    assert made.mode == saved.mode == "P"
    assert made.getpalette() == saved.getpalette()
