"""The exported page in a browser: from a file server and from the disk, its masks are those of the runtime."""

import base64
import gzip
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import web_speed
from chromium import CHROMIUM, Browser, open_browser, serve
from support.exports import NEEDS_EXPORT, contract_text, describe, make_bundle, make_graph, settle, to_bytes
from support.refusal import invoke
from ubend.core.errors import DataError
from ubend.core.i18n import choose_language
from ubend.core.progress import Reporter
from ubend.exporting.ort_web import PACKAGE, VERSION, find_ort_web
from ubend.exporting.web_page import write_folder
from ubend.models.unet import UNet
from ubend.portable.model import load

NEEDS_CHROMIUM = pytest.mark.skipif(CHROMIUM is None, reason="no browser; apt-get install chromium")
pytestmark = [NEEDS_EXPORT, NEEDS_CHROMIUM, pytest.mark.slow]
RANDOM = np.random.default_rng(8)
COUNT = 24  # images
MOST_DIFFERING = 1e-3  # of the pixels: onnxruntime-web rounds otherwise than onnxruntime
READY = "document.getElementById('status').textContent === texts.ready"


@pytest.fixture(scope="module")
def ort_web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with onnxruntime-web: `UBEND_ORT_WEB`, or downloaded, once for all processes of the tests."""
    if folder := os.environ.get("UBEND_ORT_WEB"):
        return Path(folder)
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UBEND_CACHE", str(shared))
        try:
            find_ort_web(None, Reporter())
        except DataError as error:
            pytest.skip(f"no {PACKAGE}, and none downloaded ({error}); set UBEND_ORT_WEB to a folder with it")
    return shared / f"{PACKAGE}-{VERSION}"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def run(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a few real photographs, so that both classes occur."""
    place = tmp_path_factory.mktemp("trained")
    for kind in ("images", "masks"):
        (place / "data" / kind).mkdir(parents=True)
        for path in sorted((real_data / "kvasir-seg").rglob(f"{kind}/*.jpg"))[:COUNT]:
            shutil.copy(path, place / "data" / kind)
    words = ["--size", 48, "--width", 4, "--epochs", 8, "--batch", 4, "--device", "cpu"]
    result, error = invoke("fit", place / "data", "--out", place / "run", *words)
    assert (result.exit_code, error) == (0, None), result.output
    return place / "run"


@pytest.fixture(scope="module")
def folder(run: Path, ort_web: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the run, for a file server."""
    out = tmp_path_factory.mktemp("folder") / "page"
    result, error = invoke("export", run, "--to", "web", "--out", out, "--ort-web", ort_web)
    assert (result.exit_code, error) == (0, None), result.output
    assert "http.server" in result.output
    return out


@pytest.fixture(scope="module")
def single(run: Path, ort_web: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as one file, in Vietnamese, with weights in half precision."""
    out = tmp_path_factory.mktemp("single") / "page.html"
    words = ["--to", "web", "--single-file", "--precision", "fp16", "--out", out, "--ort-web", ort_web, "--lang", "vi"]
    result, error = invoke("export", run, *words)
    choose_language("en")  # for the tests after this one
    assert (result.exit_code, error) == (0, None), result.output
    return out


@pytest.fixture
def images(real_data: Path, tmp_path: Path) -> list[Path]:
    """A real photograph, and images of each kind that is decoded in its own way."""
    folder = tmp_path / "images"
    folder.mkdir()
    photo = min((real_data / "kvasir-seg").rglob("images/*.jpg"))
    (folder / "photo.jpg").write_bytes(photo.read_bytes())
    pixels = np.asarray(Image.open(photo).convert("RGB"))[:200, :301]
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(pixels).save(folder / "turned.jpg", exif=turned, quality=80)
    Image.fromarray(pixels[:, :, 0]).save(folder / "grey.png")
    Image.fromarray(pixels).save(folder / "colors.webp", lossless=True)
    Image.fromarray(pixels).quantize(60).save(folder / "palette.png")
    clear = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    clear[30:80, 50:120, 3] = 0
    Image.fromarray(clear).save(folder / "clear.png")
    return sorted(folder.iterdir())


def predict(browser: Browser, image: Path, downloads: Path) -> NDArray[np.uint8]:
    """The mask that the page gives for a file, as downloaded."""
    count = browser.evaluate("document.querySelectorAll('article').length")
    browser.choose("#files", image)
    browser.wait(f"document.querySelectorAll('article').length === {count + 1} && {READY}")
    saved = browser.download("article a", downloads)
    assert saved.name == f"{image.stem}_mask.png"
    with Image.open(saved) as mask:
        assert mask.mode == "P"
        return np.asarray(mask)


def compare(browser: Browser, model: Path, images: list[Path], place: Path) -> None:
    """Each mask with the runtime's, and what the page says of it."""
    runtime, downloads = load(model, threads=1), place / "downloads"
    downloads.mkdir()
    classes = set[int]()
    for image in images:
        with warnings.catch_warnings(action="ignore"):  # that it is grey, or has alpha
            wanted = runtime(image)
        made = predict(browser, image, downloads)
        assert made.shape == wanted.mask.shape, image.name
        np.testing.assert_array_equal(made == 255, wanted.mask == 255, err_msg=image.name)
        assert (made != wanted.mask).mean() < MOST_DIFFERING, image.name
        shares = [float((made == index).mean()) for index in range(len(wanted.class_names))]
        shown = browser.evaluate("[...document.querySelectorAll('article:first-child tr')].map(row => row.innerText)")
        for name, share, line in zip(wanted.class_names, shares, shown[1:], strict=False):
            assert line.startswith(name)
            assert f"{100 * share:.1f}" in line.replace(",", ".") or share < 0.001
        classes |= {*made.ravel().tolist()}
    assert {0, 1} <= classes
    assert browser.complaints == []


def test_from_a_file_server(folder: Path, images: list[Path], browser: Browser, tmp_path: Path) -> None:
    """Everything comes from the page's own folder; `model.onnx` in it is what `--to onnx` writes."""
    with serve(folder) as address:
        browser.open(address)
        browser.wait(f"worker && {READY}")
        compare(browser, folder / "model.onnx", images, tmp_path)
        assert {url.removeprefix(address) for url in browser.requests} == {
            "",
            "page.js",
            "worker.js",
            "model.onnx",
            "ort-wasm-simd-threaded.wasm",
        }
    assert "Microsoft" in (folder / "onnxruntime-license.txt").read_text(encoding="utf-8")
    assert json.loads((folder / "model.json").read_text())["names"] == ["background", "foreground"]
    screenshots = os.environ.get("UBEND_SCREENSHOTS")
    if screenshots:
        browser.screenshot(Path(screenshots) / "folder.png")


def test_from_the_disk(single: Path, folder: Path, images: list[Path], browser: Browser, tmp_path: Path) -> None:
    """One file that asks for nothing; weights in half precision; in Vietnamese."""
    (tmp_path / "half").mkdir()
    half = tmp_path / "half" / "model.onnx"
    half.write_bytes(unpack(single, "model.onnx"))
    browser.open(single.as_uri())
    browser.wait(f"worker && {READY}")
    compare(browser, half, images[:3], tmp_path)
    assert browser.requests == [single.as_uri()]
    assert browser.evaluate("document.documentElement.lang") == "vi"
    assert "Ảnh" in browser.evaluate("document.body.innerText")
    assert "Microsoft" in single.read_text(encoding="utf-8")
    assert half.stat().st_size < (folder / "model.onnx").stat().st_size


def unpack(page: Path, name: str) -> bytes:
    """A file inside a single file."""
    (packed,) = re.findall(rf'id="file-{re.escape(name)}">([^<]*)<', page.read_text(encoding="utf-8"))
    return gzip.decompress(base64.b64decode(packed))


def test_tiles(ort_web: Path, browser: Browser, tmp_path: Path) -> None:
    """Larger images at their native size, tile by tile."""
    torch.manual_seed(9)
    net = settle(UNet(3, 3, width=4, depth=2, mean=[120.0] * 3, std=[60.0] * 3))
    image = tmp_path / "large.png"
    pixels = (RANDOM.random((30, 22, 3)) * 255).astype(np.uint8)
    pixels = np.kron(pixels, np.ones((8, 8, 1), np.uint8))
    Image.fromarray(pixels).save(image)
    with torch.no_grad():  # all classes occur
        assert isinstance(net.head.bias, torch.Tensor)
        net.head.bias -= net(torch.from_numpy(pixels).permute(2, 0, 1)[None].float()).mean((0, 2, 3))
    bundle = make_bundle(net, window_px=64, scale=(1.0, 1.0))
    contract = describe(Path("none"), bundle, "fp32")
    data = to_bytes(make_graph(bundle), contract_text(contract))
    write_folder(tmp_path / "page", data, contract, find_ort_web(ort_web, Reporter()))
    with serve(tmp_path / "page") as address:
        browser.open(address)
        browser.wait(f"worker && {READY}")
        compare(browser, tmp_path / "page" / "model.onnx", [image], tmp_path)


def test_several_files_and_wrong_ones(folder: Path, images: list[Path], browser: Browser, tmp_path: Path) -> None:
    """Dropped together: the good ones are shown, the others are named in one line each."""
    (tmp_path / "notes.txt").write_text("no image")
    Image.fromarray(np.full((5, 6), 40000, np.uint16)).save(tmp_path / "deep.png")
    Image.new("CMYK", (20, 20)).save(tmp_path / "inks.jpg")
    Image.new("RGBA", (9, 8)).save(tmp_path / "empty.png")
    wrong = [tmp_path / name for name in ("notes.txt", "deep.png", "inks.jpg", "empty.png")]
    with serve(folder) as address:
        browser.open(address)
        browser.wait(f"worker && {READY}")
        browser.drop(images[0], *wrong, images[1])
        browser.wait("document.querySelectorAll('article').length === 2 && status.className === 'error'")
        lines = browser.evaluate("document.getElementById('status').textContent").split("\n")
        names = browser.evaluate("[...document.querySelectorAll('article h2')].map(head => head.textContent)")
        assert [line.partition(":")[0] for line in lines] == [path.name for path in wrong]
        assert "16 bit" in lines[1]
        assert "CMYK" in lines[2]
        assert "transparent" in lines[3]
        assert names == [images[1].name, images[0].name]
        assert browser.complaints == []


def test_the_folder_from_the_disk_says_what_to_do(folder: Path, browser: Browser) -> None:
    browser.open((folder / "index.html").as_uri())
    browser.wait("document.getElementById('status').className === 'error'")
    assert "python -m http.server" in browser.evaluate("document.getElementById('status').textContent")


@pytest.mark.parametrize("width", [400, 1200])
def test_it_fits_and_is_accessible(width: int, folder: Path, images: list[Path], browser: Browser) -> None:
    """No sideways scrolling; names for what has no text; reachable by the keyboard."""
    with serve(folder) as address:
        browser.open(address, width)
        browser.wait(f"worker && {READY}")
        browser.choose("#files", *images[:2])
        browser.wait(f"document.querySelectorAll('article').length === 2 && {READY}")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    beyond = "[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)"
    assert browser.evaluate(f"{beyond}.map(e => e.tagName)") == []
    assert browser.evaluate("document.querySelectorAll('h1').length") == 1
    for label in browser.evaluate("[...document.querySelectorAll('canvas')].map(c => c.getAttribute('aria-label'))"):
        assert "background" in label
        assert "%" in label
    assert browser.evaluate("[...document.querySelectorAll('input')].every(field => field.labels.length === 1)")
    reached = list[str]()
    browser.evaluate("document.activeElement.blur()")
    for _press in range(6):
        browser.press("Tab")
        reached.append(browser.evaluate("document.activeElement.id || document.activeElement.className"))
    assert {"files", "opacity", "button"} <= {*reached}
    if screenshots := os.environ.get("UBEND_SCREENSHOTS"):
        browser.screenshot(Path(screenshots) / f"page-{width}.png")
    shown = [
        browser.evaluate(
            f"opacity.value = {value}; opacity.dispatchEvent(new Event('input')); "
            "document.querySelector('canvas').toDataURL()"
        )
        for value in (0, 100)
    ]
    assert shown[0] != shown[1]
    assert browser.complaints == []


def test_the_benchmark(folder: Path, tmp_path: Path) -> None:
    """In its smallest form; nothing here looks at a speed."""
    web_speed.main([str(folder), "--rounds", "2", "--json", str(tmp_path / "speed.json")])
    rows = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert [row["n"] for row in rows] == [2, 2]
    assert all(0 < value < 60 for row in rows for value in row["values"])
