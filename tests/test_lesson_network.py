"""The lessons on the network: what is drawn has the shapes and numbers of the real one; and a training, animated."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor, nn

from support.discs import draw_disc
from support.refusal import check, raises, refused_once
from ubend.cli.app import main
from ubend.core.errors import DataError, ModelFileError, OutputError, SettingError
from ubend.core.i18n import choose_language
from ubend.dataset.sample import draw_sample
from ubend.models.model_file import load_bundle
from ubend.models.unet import UNet
from ubend.training.run_folder import RunFolder
from ubend_lessons import tiny
from ubend_lessons.architecture import draw_architecture, lay_out, teach_architecture, untrained
from ubend_lessons.feature_maps import CHANNELS, last_of_blocks, normalise_cards, pick_channels, teach_feature_maps
from ubend_lessons.trace import trace_network
from ubend_lessons.training import MAX_FRAMES, pick_epochs, read_history, teach_training

NETS = [
    (UNet(3, 2, width=4, depth=4), 64),
    (UNet(1, 5, width=6, depth=1), 24),
    (UNet(2, 3, width=4, depth=3, skips=(True, False, True)), 40),
    (UNet(3, 2, width=2, depth=2, skips=(False, False)), 33),  # is padded
    (UNet(3, 4, width=2, depth=7), 128),
    (UNet(3, 2, width=4, depth=2, upsampling="nearest"), 32),
    (UNet(3, 2, width=4, depth=3, upsampling="bilinear", skips=(True, False, True)), 32),
    (UNet(3, 2, width=4, depth=2, upsampling="unpool"), 32),
]


class Cropping(nn.Module):
    """One level in the form of the paper: valid convolutions; the cropped skip connection follows the upsampled map."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.pool = nn.MaxPool2d(2)
        self.deep = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU())
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.second = nn.Conv2d(8, 4, 3)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        skipped = self.first(image)
        upsampled = self.up(self.deep(self.pool(skipped)))
        cut = (skipped.shape[-1] - upsampled.shape[-1]) // 2
        out: Tensor = self.head(self.second(torch.cat([upsampled, skipped[..., cut:-cut, cut:-cut]], dim=1)))
        return out


def make_image(net: Any, size_px: int) -> Tensor:
    return torch.rand(1, getattr(net, "channels", 3), size_px, size_px, generator=torch.Generator().manual_seed(1))


def watched(net: UNet, image: Tensor) -> list[tuple[int, ...]]:
    """(C, H, W) of what stem, encoders, decoders and head give, by names that the trace does not know."""
    shapes: list[tuple[int, ...]] = []
    blocks = [net.stem, *net.encoders, *net.decoders, net.head]
    hooks = [b.register_forward_hook(lambda _m, _i, out: shapes.append(tuple(out.shape[1:]))) for b in blocks]
    with torch.no_grad():
        net.eval()(image)
    for hook in hooks:
        hook.remove()
    return shapes


@pytest.mark.parametrize(("net", "size_px"), NETS)
def test_the_trace_is_the_network(net: UNet, size_px: int) -> None:
    image = make_image(net, size_px)
    steps = trace_network(net.eval(), image)
    real = watched(net, image)
    blocks = last_of_blocks(steps)
    if net.upsampling == "unpool":  # its convolution comes before the map grows
        assert [step.kind for step in steps].count("upsampling") == net.depth
        blocks = [number - (steps[number + 1].kind == "upsampling") for number in blocks]
    assert [steps[number].shape for number in blocks] == real[:-1]
    assert steps[-1].shape == real[-1]
    assert sum(step.parameters for step in steps) == sum(p.numel() for p in net.parameters())
    with torch.no_grad():
        logits = net(image)
    torch.testing.assert_close(steps[-1].features[..., : image.shape[2], : image.shape[3]], logits)
    joined = [step.source for step in steps if step.source is not None]
    assert joined == [blocks[i] for i in reversed(range(net.depth)) if net.skips[i]]
    assert [s.kind for s in steps].count("pooling") == [s.kind for s in steps].count("upsampling") == net.depth


@pytest.mark.parametrize(("net", "size_px"), NETS)
def test_boxes_show_the_maps(net: UNet, size_px: int) -> None:
    steps = trace_network(net.eval(), make_image(net, size_px))
    boxes = lay_out(steps)
    own = [box for box in boxes if not box.copied]
    assert [(box.channels, *box.size_hw) for box in own] == [step.shape for step in steps]
    copies = [box for box in boxes if box.copied]
    assert [box.channels for box in copies] == [steps[box.step].shape[0] for box in copies]
    assert len(copies) == sum(net.skips)
    for one, other in itertools.combinations(boxes, 2):
        apart = one.left + one.width <= other.left + 1e-9 or other.left + other.width <= one.left + 1e-9
        assert apart or one.top + one.height <= other.top or other.top + other.height <= one.top


def test_a_cropped_copy(tmp_path: Path) -> None:
    net = Cropping().eval()
    steps = trace_network(net, make_image(net, 36))
    assert [step.shape for step in steps] == [
        (3, 36, 36),
        (4, 34, 34),
        (4, 17, 17),
        (8, 15, 15),
        (4, 30, 30),
        (4, 28, 28),
        (2, 28, 28),
    ]
    assert [step.source for step in steps] == [None] * 5 + [1, None]
    assert steps[3].label == "convolution 3 x 3 + ReLU"
    draw_architecture(steps, [tmp_path / "a.svg"])
    assert "copied, cropped and concatenated" in (tmp_path / "a.svg").read_text()


def test_the_drawing_says_sizes_and_layers(tmp_path: Path) -> None:
    net = UNet(3, 2, width=6, depth=2, skips=(True, False))
    lines = teach_architecture(net, 48, out=tmp_path)
    svg = (tmp_path / "architecture.svg").read_text()
    for words in (
        "convolution 3 x 3 + batch norm + ReLU",
        "max pooling 2 x 2",
        "transposed convolution 4 x 4, stride 2",
        "convolution 1 x 1",
        "skip connection: copied and concatenated",
        *("48 x 48", "24 x 24", "12 x 12"),
        *(">6<", ">12<", ">24<", ">2<", ">6 + 6<"),  # what is joined: over both halves
    ):
        assert words in svg
    assert "cropped" not in svg
    total = sum(p.numel() for p in net.parameters())
    assert any(line.startswith(f"{total:,} parameters in total") for line in lines)
    teach_architecture(net, 48, out=tmp_path / "again")
    assert (tmp_path / "again" / "architecture.svg").read_text() == svg
    with Image.open(tmp_path / "architecture.png") as page:
        assert page.width > 800


def test_without_skips_nothing_is_said_of_them(tmp_path: Path) -> None:
    steps = trace_network(UNet(1, 2, width=2, depth=1, skips=(False,)).eval(), torch.rand(1, 1, 16, 16))
    draw_architecture(steps, [tmp_path / "a.svg"])
    assert "skip connection" not in (tmp_path / "a.svg").read_text()


def test_the_texts_network() -> None:
    net = untrained()
    assert (net.width, net.depth, net.classes) == (64, 4, 2)
    torch.testing.assert_close(net.head.weight, untrained().head.weight)
    with raises(SettingError, key="--width", named=["256", "7"]):
        untrained(256, 7)


# Commands


def invoke(*words: object) -> str:
    run = CliRunner().invoke(main, ["lesson", *map(str, words)])
    choose_language("en")
    assert run.exit_code == 0, run.output
    return run.output


@pytest.mark.parametrize(("language", "word"), [("en", "with random weights"), ("vi", "tích chập chuyển vị 4 x 4")])
def test_architecture_command(language: str, word: str, tmp_path: Path) -> None:
    words = ["--width", 4, "--depth", 2, "--size", 32, "--out", tmp_path, "--lang", language]
    assert word in invoke("architecture", *words)


def test_architecture_of_a_model(good: Path, tmp_path: Path) -> None:
    said = invoke("architecture", "--model", good / "run", "--out", tmp_path)
    assert said.startswith("  0      3 x 32 x 32  the image, normalised\n  1      4 x 32 x 32  ")


def test_feature_maps_of_a_model(good: Path, tmp_path: Path) -> None:
    said = invoke("feature-maps", "--model", good / "run", good / "data" / "images" / "disc00.png", "--out", tmp_path)
    bundle = load_bundle(good / "run")
    image, _mask = draw_disc(0)
    lines = teach_feature_maps(bundle, image, out=tmp_path / "python")
    assert said.splitlines()[: len(lines) - 2] == lines[:-2]
    shapes = watched(bundle.model, torch.rand(1, 3, 29, 35))[:-1]  # 40 x 48 px at the model's size
    for (channels, height, width), line in zip(shapes, lines[4:-2], strict=True):
        assert f"{channels} channels of {height} x {width}; " in line
    for name in ("feature_maps", "normalise"):
        with Image.open(tmp_path / f"{name}.png") as page:
            assert page.width > 900


@pytest.mark.parametrize(("language", "word"), [("en", "a small one is trained"), ("vi", "một mạng nhỏ được")])
def test_feature_maps_of_a_small_network(
    language: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"data.size": 32, "model.width": 2, "model.depth": 1, "train.epochs": 1, "train.batch": 4}
    monkeypatch.setattr(tiny, "_SETTINGS", small)
    monkeypatch.setattr(tiny, "draw_sample", lambda place, count, seed: draw_sample(place, 12, 64, seed))
    said = invoke("feature-maps", "--out", tmp_path, "--lang", language)
    assert word in said
    assert (tmp_path / "sample-1" / "model.safetensors").is_file()
    said = invoke("training", "--out", tmp_path, "--lang", language)
    assert str(tmp_path / "sample-2") in said.replace("\n", "")
    with Image.open(tmp_path / "training.gif") as animation:
        assert getattr(animation, "n_frames", 1) == 1


def test_channels_that_vary_are_shown() -> None:
    features = np.zeros((9, 4, 4), np.float32)
    for channel in range(2, 9):
        features[channel, 0, 0] = channel
    assert pick_channels(features) == list(range(9 - CHANNELS, 9))
    assert pick_channels(features[:2]) == [0, 1]


def test_normalising_and_back() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    mean, std = image.mean(axis=(0, 1), dtype=np.float32), image.std(axis=(0, 1), dtype=np.float32)
    cards, lines = normalise_cards(image, mean, std)
    assert [card.image.shape for card in cards] == [(200, 300, 3)] * 4
    np.testing.assert_array_equal(cards[0].image, cards[3].image)
    assert (cards[0].image != cards[1].image).any()
    assert ", std 1." in cards[1].text
    cut = ((image < mean) | (image > mean + std)).mean()
    assert f"{cut:.0%} of these values" in cards[1].text
    assert len(lines) == 4
    assert f"mean {mean[0]:.4g}, std {std[0]:.4g}" in lines[1]


@pytest.mark.parametrize(
    ("image", "key"),
    [
        (np.zeros((8, 8), np.uint8), "shape"),
        (np.zeros((0, 8, 3), np.uint8), "shape"),
        (np.zeros((8, 8, 3), np.uint16), "dtype"),
    ],
)
def test_images_that_the_model_does_not_take(image: Any, key: str, good: Path, tmp_path: Path) -> None:
    with raises(DataError, key=key):
        teach_feature_maps(load_bundle(good / "run"), image, out=tmp_path)


def test_bad_words(good: Path, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "out"]
    run, none = good / "run", tmp_path / "none"
    check(refused_once("lesson", "feature-maps", "--model", run, *out), SettingError, key="--model")
    check(refused_once("lesson", "feature-maps", "--model", none, "a.png", *out), ModelFileError, path=none)
    error = refused_once("lesson", "feature-maps", "--model", run, tmp_path / "a.png", *out)
    check(error, DataError, path=tmp_path / "a.png")
    check(refused_once("lesson", "architecture", "--model", run, "--width", 4, *out), SettingError, key="--model")
    for words in (["--size", 5000], ["--size", 0], ["--model", run, "--size", 0]):
        error = refused_once("lesson", "architecture", *words, *out)
        check(error, SettingError, key="--size", named=["1024"])
    check(refused_once("lesson", "training", none, *out), DataError, path=none)
    (tmp_path / "file").touch()
    assert type(refused_once("lesson", "training", run, "--out", tmp_path / "file")) is OutputError
    assert not (tmp_path / "out").exists()


# Training


def test_a_frame_for_each_epoch(good: Path, tmp_path: Path) -> None:
    lines = teach_training(good / "run", out=tmp_path, seconds=0.5)
    with Image.open(tmp_path / "training.gif") as animation:
        assert getattr(animation, "n_frames", 1) == 2
        assert animation.info["duration"] == 500
        assert animation.info["loop"] == 0
        sizes, frames = [], []
        for number in range(2):
            animation.seek(number)
            sizes.append(animation.size)
            frames.append(np.asarray(animation.convert("RGB")))
    assert sizes[0] == sizes[1]
    half = np.abs(frames[1].astype(int) - frames[0])[:, -500:]  # the curves have upsampled
    assert (half > 60).any()
    last = json.loads((good / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert lines[-3].startswith(f"epoch 2: validation loss {last['val_loss']:.3f}, Dice background ")
    assert lines[-2] == "2 of 2 epochs are shown"


@pytest.mark.parametrize("count", [1, 2, MAX_FRAMES, MAX_FRAMES + 1, 400])
def test_epochs_are_taken_evenly(count: int) -> None:
    epochs = list(range(1, count + 1))
    found = pick_epochs(epochs)
    assert len(found) == min(count, MAX_FRAMES)
    assert (found[0], found[-1]) == (1, count)
    assert max(np.diff(found), default=0) - min(np.diff(found), default=0) <= 1


def test_a_missing_panel_is_passed_over(run: Path, tmp_path: Path) -> None:
    RunFolder(run).panel(1).unlink()
    assert "1 of 2 epochs are shown" in teach_training(run, out=tmp_path)
    shutil.rmtree(run / "panels")
    with raises(DataError, path="panels"):
        teach_training(run, out=tmp_path)


def test_damaged_runs(run: Path, tmp_path: Path) -> None:
    folder = RunFolder(run)
    folder.panel(2).write_bytes(folder.panel(2).read_bytes()[:200])
    with raises(DataError, path="epoch_0002.png"):
        teach_training(run, out=tmp_path)
    for text in ("", "{}\n", "[1]\n", "no json\n", '{"epoch": 1, "val_dice": 3}\n', '{"epoch": "1", "val_dice": {}}\n'):
        folder.metrics.write_text(text)
        with raises(DataError, path=run):
            read_history(folder)


def test_losses_that_are_no_numbers_are_gaps(run: Path, tmp_path: Path) -> None:
    folder = RunFolder(run)
    rows = read_history(folder)
    rows[0] |= {"val_loss": float("nan"), "train_loss": None, "val_dice": dict.fromkeys(rows[0]["val_dice"])}
    folder.write_metrics(rows)
    assert "epoch 1: validation loss nan" in teach_training(run, out=tmp_path)[0]
