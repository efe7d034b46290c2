"""Cut-outs: alpha, edges without a halo, backgrounds; and the command on drawn discs."""

from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from torch import nn

from support.discs import draw_disc
from support.models import prob_of
from support.refusal import check, contents, raises, refused, refused_once
from ubend.cli.app import main
from ubend.core.errors import DataError, OutputError, SettingError
from ubend.inference import ensemble
from ubend.io.images import Sizing
from ubend.labels.class_table import make_label_map
from ubend.models.model_file import Bundle, save_bundle
from ubend.models.unet import UNet
from ubend.portable import files
from ubend.tasks.cutout import extend_colors, make_alpha, parse_classes, weigh_classes

probabilities = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    elements=st.sampled_from([np.float32(n / 16) for n in range(17)]),
    fill=st.nothing(),
)


def ubend(*words: object) -> str:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output


def pixels(path: Path, mode: str | None = None) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert(mode))


@given(probabilities, st.sampled_from([None, 0.0, 1.0, 5.0]))
def test_alpha_agrees_with_the_mask(prob: np.ndarray, soft_px: float | None) -> None:
    """The middle of the edge is the border of what is more likely in than out."""
    alpha = make_alpha(prob, soft_px)
    assert alpha.dtype == np.float32
    assert alpha.shape == prob.shape
    assert ((alpha >= 0) & (alpha <= 1)).all()
    np.testing.assert_array_equal(alpha >= 0.5, prob >= 0.5)
    if not (prob >= 0.5).any():
        assert not alpha.any()
    if soft_px == 0:
        assert set(np.unique(alpha)) <= {0, 1}


def test_alpha_by_hand() -> None:
    """From 0.25 to 0.75, near the border; further away there are no ghosts, and no holes."""
    prob = np.array([[0.0, 0.25, 0.375, 0.5, 0.625, 0.75, 1.0, 0.1, 0.45, 0.45]], np.float32)
    np.testing.assert_allclose(make_alpha(prob), [[0, 0, 0.25, 0.5, 0.75, 1, 1, 0, 0.25, 0]])
    unsure = np.array([[0.4] * 100 + [0.6] * 28], np.float32)  # the edge reaches 2 px to either side
    assert np.flatnonzero(make_alpha(unsure)[0] > 0)[0] == 98
    assert np.flatnonzero(make_alpha(unsure)[0] < 1)[-1] == 101
    assert not make_alpha(unsure - 0.2).any()
    step = np.array([[0, 0, 0, 1, 1, 1]], np.float32)
    np.testing.assert_allclose(make_alpha(step, 4), [[0, 0.125, 0.375, 0.625, 0.875, 1]])
    np.testing.assert_array_equal(make_alpha(step, 0), step)
    np.testing.assert_array_equal(make_alpha(np.ones((3, 3), np.float32), 4), np.ones((3, 3)))


def test_no_halo() -> None:
    """A white object that was photographed on black keeps its white up to the edge."""
    alpha = np.tile(np.linspace(0, 1, 11, dtype=np.float32), (4, 1))
    image = np.rint(10 + 245 * alpha).astype(np.uint8)[..., None].repeat(3, axis=2)
    out = extend_colors(image, alpha)
    lost = alpha * (255 - out[..., 0].astype(float))  # of the light that an object on white would show
    assert lost.max() < 30
    assert (alpha * (255.0 - image[..., 0])).max() > 60
    assert not out[alpha == 0].any(), "nothing of the background is in the file"
    np.testing.assert_array_equal(out[alpha == 1], image[alpha == 1])
    faint = np.full((4, 11), 0.6, np.float32)
    np.testing.assert_array_equal(extend_colors(image, faint), image)


def test_classes() -> None:
    pets = ("pet", "background", "contour")
    assert parse_classes([], ("background", "polyp")) == parse_classes(["polyp"], ("background", "polyp")) == {1: 1}
    assert parse_classes(["pet", "contour=0.5"], pets) == {0: 1, 2: 0.5}
    assert parse_classes(["a=1"], ("a=1", "a")) == {0: 1}
    assert parse_classes([], ("nền", "u")) == {1: 1}
    prob = np.array([0.5, 0.3, 0.2], np.float32).reshape(3, 1, 1)
    assert weigh_classes(prob, {0: 1, 2: 0.5}).item() == pytest.approx(0.6)
    with raises(SettingError, key="--class"):
        parse_classes([], pets)
    with raises(SettingError, key="class"):
        parse_classes(["pets"], pets)
    for text in ("pet=2", "pet=0", "pet=nan", "pet=", "pet=x"):
        with raises(SettingError, key="--class"):
            parse_classes([text], pets)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that finds what is brighter than 115, set by hand: only the mean of the channels goes through it."""
    net = UNet(3, 2, width=1, depth=1, std=[255.0] * 3).eval()
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                layer.weight.zero_()
        net.stem[0].weight[0, :, 1, 1] = 1 / 3
        for layer in (net.stem[3], net.decoders[0].block[0], net.decoders[0].block[3]):  # type: ignore[index, union-attr]
            layer.weight[0, 0, 1, 1] = 1
        net.head.weight[1], net.head.bias[:] = 20, torch.tensor([0, -20 * 115 / 255])  # type: ignore[index]
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_bundle(path, Bundle(net, make_label_map([0, 255]), Sizing(44, True, 3)))
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A disc, an image without one, and a grey one of another size."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(draw_disc(3)[0]).save(folder / "disc.png")
    Image.fromarray(np.full((33, 20, 3), 60, np.uint8)).save(folder / "none.png")
    Image.fromarray(np.full((20, 24), 60, np.uint8)).save(folder / "grey.png")
    return folder


def test_on_transparency(model: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "cut"
    words = ["cutout", model, images, "--device", "cpu"]
    lines = ubend(*words, "--out", out, "--class", "foreground").splitlines()
    assert lines[-1] == f"cut-outs in {out}: 3"
    shapes = {path.stem: pixels(path).shape for path in out.glob("*.png")}
    assert shapes == {"disc": (40, 48, 4), "none": (33, 20, 4), "grey": (20, 24, 4)}
    for path in out.glob("*.png"):
        cut = pixels(path)
        empty = f"{images / path.name}: no pixels of foreground were found; its cut-out is empty"
        assert (empty in lines) == (not cut[..., 3].any()) == (path.stem != "disc")
        solid = cut[..., 3] == 255
        original = pixels(images / path.name, "RGB")
        np.testing.assert_array_equal(cut[solid][:, :3], original[solid])
        if path.stem == "disc":
            assert (solid == (draw_disc(3)[1] > 0)).mean() > 0.95
    again = tmp_path / "again"
    ubend(*words, "--out", again)
    for path in out.glob("*.png"):
        assert (again / path.name).read_bytes() == path.read_bytes(), "the only class is the default"


def test_on_a_background(model: Path, images: Path, tmp_path: Path) -> None:
    """A colour, and an image scaled to cover, shine through where the cut-out does not."""
    ground = np.zeros((10, 40, 3), np.uint8)
    ground[:, :10] = ground[:, -10:] = 255  # lies outside of what covers 48 x 40
    Image.fromarray(ground).save(tmp_path / "ground.png")
    for name, behind in (("alpha", "transparent"), ("blue", "#0000ff"), ("scene", tmp_path / "ground.png")):
        ubend(
            *("cutout", model, images / "disc.png", "--device", "cpu", "--out", tmp_path / name),
            *("--background", behind, "--soft", 3),
        )
    cut = pixels(tmp_path / "alpha" / "disc.png").astype(float)
    share = cut[..., 3:] / 255
    assert 0.05 < share.mean() < 0.4
    for name, color in (("blue", (0, 0, 255)), ("scene", (0, 0, 0))):
        laid = pixels(tmp_path / name / "disc.png")
        assert laid.shape == (40, 48, 3)
        expected = share * cut[..., :3] + (1 - share) * np.array(color)
        np.testing.assert_allclose(laid[:, 5:-5], expected[:, 5:-5], atol=2)


def test_refused(model: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "cut"
    words = ["cutout", model, images / "disc.png", "--device", "cpu", "--out", out]
    check(refused_once(*words, "--background", "nowhere.png"), SettingError, key="--background")
    check(refused_once(*words, "--class", "foregrund"), SettingError, key="class")
    for wrong in ("-1", "nan", "inf"):
        check(refused_once(*words, "--soft", wrong), SettingError, key="--soft")
    (tmp_path / "disc.jpg").write_bytes((images / "disc.png").read_bytes())
    check(refused_once(*words, tmp_path / "disc.jpg"), DataError, key="--out")
    Image.fromarray(np.full((8, 8), 999, np.uint16)).save(tmp_path / "deep.png")
    check(refused_once("cutout", model, tmp_path / "deep.png", "--out", out), DataError, path="deep.png", key="dtype")
    assert not out.exists()
    ubend(*words)
    before = (out / "disc.png").read_bytes()
    check(refused_once(*words), OutputError, path=out / "disc.png", key="--out")
    assert (out / "disc.png").read_bytes() == before


def test_broken_files_do_not_stop_the_rest(model: Path, images: Path, tmp_path: Path) -> None:
    """Told at the end, all of them; exit code 2; the others are written as without them."""
    out = tmp_path / "cut"
    data = (images / "disc.png").read_bytes()
    (tmp_path / "half.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "zero.png").write_bytes(b"")
    words = ["cutout", model, "--device", "cpu", "--out"]
    (tmp_path / "disc.png").write_bytes(data)
    told = refused(*words, out, tmp_path / "zero.png", tmp_path / "disc.png", tmp_path / "half.png", images)
    check(told, DataError, key="--out")
    told = refused(*words, out, tmp_path / "zero.png", tmp_path / "half.png", images)
    assert [problem.path.name for problem in told.problems] == ["zero.png", "half.png"]
    assert {path.stem for path in out.glob("*.png")} == {"disc", "none", "grey"}
    ubend(*words, tmp_path / "alone", images)
    assert contents(out) == contents(tmp_path / "alone")


def test_resume(model: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "cut"
    words = ["cutout", model, images, "--device", "cpu", "--out", out]
    ubend(*words)
    whole = contents(out)
    (out / "disc.png").unlink()
    (out / ".disc-01234567.png").write_bytes(b"half")
    before = (out / "none.png").stat().st_mtime_ns
    check(refused_once(*words), OutputError, key="--out")
    assert "are kept: 2" in ubend(*words, "--resume")
    assert contents(out) == whole
    assert (out / "none.png").stat().st_mtime_ns == before
    for more, key in ((["--soft", 2], "--soft"), (["--background", "white"], "--background"), (["--tta"], "--tta")):
        check(refused_once(*words, "--resume", *more), OutputError, path=out / "cutout.json", key=key)


def test_conditions(model: Path, images: Path, tmp_path: Path) -> None:
    """Tiles, several models and views: the alpha is that of what they say together."""
    for name, words, settings_of in (
        ("tiles", ["--tiles", 16, "--overlap", 0.5], {"tiles": 16, "overlap": 0.5}),
        ("views", ["--tta", "--with", model], {"tta": True}),
    ):
        out = tmp_path / name
        ubend("cutout", model, images / "disc.png", "--device", "cpu", "--out", out, *words)
        models = [model, model] if "--with" in words else model
        prob = prob_of(ensemble.load(models, device="cpu", **settings_of), images / "disc.png")  # type: ignore[arg-type]
        np.testing.assert_array_equal(pixels(out / "disc.png")[..., 3], np.rint(255 * make_alpha(prob[1])))


def test_no_room(model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _path: usage(10**9, 10**9, 1000))
    error = refused_once("cutout", model, images, "--device", "cpu", "--out", tmp_path / "cut")
    check(error, OutputError, path=tmp_path / "cut")
    assert not (tmp_path / "cut").exists()
