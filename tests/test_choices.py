"""What is chosen from images and device, and that what a person sets is never chosen over."""

import re
import tomllib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.refusal import raises
from ubend.core.autoconfig import choose_input_format, choose_network, resolve
from ubend.core.errors import SettingError
from ubend.core.plan import Directions, Facts, InputFormat, Plan, Width
from ubend.core.settings import FROZEN_COPIES, PIP_ENCODERS, Recipe, dump_toml, flatten, make_settings

NO_DIRECTION = Directions(upright_t=0.0, upright_offset=0.0, edge_t=0.0, edges=0.0)


def facts(input_format: InputFormat, foreground: dict[str, float], **changes: Any) -> Facts:
    known: dict[str, Any] = {
        "training_images": 700,
        "training_pixels": 700 * 352**2,
        "device": "cuda",
        "precision": ("bfloat16", "fast there"),
        "directions": NO_DIRECTION,
    }
    shares = {"background": 1 - sum(foreground.values()), **foreground}
    return Facts(input_format=input_format, shares=shares, foreground=tuple(foreground), **{**known, **changes})


def chosen(
    recipe: Recipe = "modern",
    changes: dict[str, Any] | None = None,
    size_hw: tuple[int, int] = (352, 352),
    *,
    channels: int = 3,
    classes: int = 2,
    foreground: dict[str, float] | None = None,
    widths: dict[str, Width] | None = None,
    **known: Any,
) -> Plan:
    foreground = foreground or dict.fromkeys("abcdefgh"[: classes - 1], 0.153)
    settings = make_settings(recipe, changes=changes)
    native_hw, device = np.array([size_hw]), known.get("device", "cuda")
    images = choose_input_format(settings, native_hw, channels, len(foreground) + 1, widths or {}, device)
    plan = resolve(settings, facts(images, foreground, **known))
    for choice in plan.choices:
        assert choice.line().startswith(f"{choice.key} = ")
        assert choice.reason
        assert "{" not in choice.line()
    return plan


def test_tutorials_two_jobs() -> None:
    polyps, pets = chosen("tutorial"), chosen("tutorial", classes=3)
    assert (polyps.data.channels, polyps.augment.kind) == (1, "frozen")
    assert (polyps.data.mean, polyps.data.std) == ((0.485,), (0.229,))
    assert (pets.data.channels, pets.augment.kind) == (3, "none")
    assert (pets.data.mean, pets.data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    for job in (polyps, pets):
        assert (job.data.size, job.data.resize, job.model.width, job.train.epochs, job.train.batch) == (
            128,
            "squash",
            64,
            30,
            64,
        )
        assert (job.train.optimizer, job.train.loss, job.train.precision) == ("adam", "ce", "float32")
    colour = chosen("tutorial", {"data.channels": 3})
    assert (colour.data.channels, len(colour.data.mean or ())) == (3, 3)


def test_tutorial_with_grey_images_of_three_classes() -> None:
    assert chosen("tutorial", channels=1, classes=3).data.mean == (0.485,)


def test_modern() -> None:
    gpu, cpu = chosen(), chosen(device="cpu", precision=("float32", "exact"))
    assert gpu.augment.kind == cpu.augment.kind == "warp"
    assert (gpu.data.channels, gpu.data.size, gpu.model.width) == (3, 256, 32)
    assert chosen(changes={"model.encoder": "none"}).model.width == 64
    assert (gpu.model.encoder, gpu.model.pretrained) == ("tf_efficientnet_lite0", True)
    assert (cpu.data.size, cpu.model.width, cpu.train.precision) == (128, 16, "float32")
    assert gpu.train.precision == "bfloat16"
    assert gpu.data.mean is None  # measured on the training split
    assert chosen(channels=1).data.channels == 1


@pytest.mark.parametrize(
    ("changes", "device", "size", "epochs"),
    [
        ({}, "cuda", 256, 100),
        ({"model.encoder": "none"}, "cuda", 192, 250),
        ({"model.encoder": "none", "data.size": 128}, "cuda", 128, 250),
        ({"model.encoder": "none", "data.size": 256}, "cuda", 256, 141),
        ({"model.encoder": "none", "data.size": 352}, "cuda", 352, 100),
        ({"model.encoder": "none"}, "cpu", 128, 35),
        ({"model.kind": "paper"}, "cuda", 256, 100),
    ],
)
def test_the_plain_unet_sees_more_and_smaller_images(
    changes: dict[str, Any], device: str, size: int, epochs: int
) -> None:
    plan = chosen(changes=changes, device=device, training_images=800)
    assert (plan.data.size, plan.train.epochs) == (size, epochs)


@pytest.mark.parametrize(
    ("t", "offset", "edge_t", "edges", "wanted"),
    [
        (20.0, 0.3, 0.0, 0.0, "upright"),
        (20.0, 0.05, 0.0, 0.0, "free"),
        (2.0, 0.3, 0.0, 0.0, "free"),
        (0.0, 0.0, 0.0, 0.0, "free"),
        (9.0, -0.3, 0.0, 0.0, "free"),
        (0.0, 0.0, 10.0, 0.58, "upright"),
        (0.0, 0.0, 10.0, -0.58, "upright"),
        (0.0, 0.0, 24.0, -0.11, "free"),
        (0.0, 0.0, 2.0, 0.58, "free"),
    ],
)
def test_orientation(t: float, offset: float, edge_t: float, edges: float, wanted: str) -> None:
    settings = chosen(directions=Directions(t, offset, edge_t, edges))
    assert settings.augment.orientation == wanted
    assert settings.augment.rotation_deg == (15 if wanted == "upright" else 180)
    mine = chosen(changes={"augment.orientation": "upright", "augment.rotation_deg": 3})
    assert (mine.augment.orientation, mine.augment.rotation_deg) == ("upright", 3)


@given(
    st.integers(1, 5000),
    st.integers(1, 5000),
    st.integers(1, 20_000),
    st.sampled_from(["cpu", "cuda"]),
    st.integers(2, 9),
)
def test_choices_are_sane(height: int, width: int, training: int, device: str, classes: int) -> None:
    for recipe in ("modern", "tutorial"):
        settings = chosen(
            recipe,
            size_hw=(height, width),
            training_images=training,
            device=device,
            classes=classes,  # type: ignore[arg-type]
        )
        data, train = settings.data, settings.train
        assert data.size is not None
        assert 32 <= data.size <= 256
        assert data.size % 16 == 0
        assert train.epochs is not None
        assert 10 <= train.epochs <= 400
        assert train.batch is not None
        if recipe == "modern":
            assert 1 <= train.batch <= training
        for value in (settings.model.width, train.precision, data.channels, settings.augment.kind):
            assert value is not None


def test_what_is_set_is_not_chosen() -> None:
    changes = {
        "data.channels": 3,
        "data.size": 40,
        "model.encoder": "none",
        "train.ema_decay": 0.5,
        "model.width": 5,
        "train.batch": 3,
        "train.epochs": 2,
        "train.precision": "float32",
        "train.loss": "dice+focal",
        "augment.kind": "none",
        "data.mean": (0.1, 0.2, 0.3),
        "data.std": (1.0, 1.0, 1.0),
    }
    for recipe in ("modern", "tutorial"):
        plan = chosen(recipe, changes)  # type: ignore[arg-type]
        assert plan.choices == ()
        said, decided = (dict(flatten(some.model_dump())) for some in (make_settings(recipe, changes=changes), plan))  # type: ignore[arg-type]
        assert {key: decided[key] for key, value in said.items() if value is not None} == {
            key: value for key, value in said.items() if value is not None
        }


def test_a_plan_leaves_nothing_open() -> None:
    """None is left only where something is absent; a plan that is read again has nothing to choose."""
    absent = {"device", "data.folder", "data.images", "data.masks", "data.split", "data.classes", "data.values"}
    absent |= {"data.size", "data.crop", "data.crops_per_epoch", "data.mean", "data.std", "augment.elastic_px"}
    absent |= {"model.weights", "train.class_weights", "train.patience", "train.init_from"}
    absent |= {"data.test", "data.folds", "data.held_out", "data.leave_out", "data.split_seed", "train.track"}
    for recipe in ("modern", "tutorial", "paper"):
        for changes in ({}, {"data.resize": "native", "train.border_weight": 0.0}, {"data.crop": 64}):
            if recipe == "tutorial" and changes:
                continue
            plan = chosen(recipe, changes)  # type: ignore[arg-type]
            assert {key for key, value in flatten(plan.model_dump()) if value is None} <= absent
            config = dict(flatten(tomllib.loads(dump_toml(plan))))
            again = chosen(recipe, config)  # type: ignore[arg-type]
            assert (again.choices, dump_toml(again)) == ((), dump_toml(plan))


@pytest.mark.parametrize(("share", "shown"), [(0.153, "15.3%"), (0.0025, "0.25%"), (4e-6, "0.0004%"), (0.0, "0.0%")])
def test_loss_is_chosen_aloud(share: float, shown: str) -> None:
    """With the figure of the rarest class; the recipe `tutorial` keeps its own."""
    plan = chosen(foreground={"nerve": 0.4, "polyp": share})
    line = next(choice.line() for choice in plan.choices if choice.key == "train.loss")
    assert line.startswith("train.loss = logdice+ce: ")
    assert f"polyp, has {shown} of the training pixels" in line
    assert plan.train.class_weights is None
    assert chosen("tutorial").train.loss == "ce"


@pytest.mark.parametrize(
    ("changes", "share", "wanted"),
    [
        ({"data.crop": 64}, 0.01, 0.33),
        ({"data.crop": 64}, 0.2, 0.0),
        ({"data.crop": 64, "data.foreground_share": 0.9}, 0.2, 0.9),
        ({"data.crop": 256}, 0.01, 0.0),  # as large as the images
        ({}, 0.01, 0.0),
        ({"data.crop": 64, "augment.kind": "none"}, 0.01, 0.0),
    ],
)
def test_windows_over_objects(changes: dict[str, Any], share: float, wanted: float | None) -> None:
    settings = chosen(changes=changes, foreground={"nerve": 0.5, "polyp": share})
    assert settings.data.foreground_share == wanted


@pytest.mark.parametrize(
    ("device", "size_hw", "window"),
    [
        ("cpu", (2000, 3000), 128),
        ("cuda", (2000, 3000), 256),
        ("cuda", (200, 3000), 192),
        ("cpu", (100, 90), 64),
        ("cuda", (9, 9), 32),
    ],
)
def test_window_at_native_size(device: str, size_hw: tuple[int, int], window: int) -> None:
    """No larger than the middle image, and what the network divides by."""
    settings = chosen(changes={"data.resize": "native"}, size_hw=size_hw, device=device, training_pixels=10**9)
    assert (settings.data.crop, settings.data.size) == (window, None)
    assert settings.data.foreground_share == 0.5


@pytest.mark.parametrize(
    ("device", "images", "megapixels", "windows", "epochs"),
    [
        ("cuda", 4, 40, 611, 131),
        ("cuda", 4, 4000, 4000, 20),
        ("cuda", 5000, 40, 5000, 16),
        ("cpu", 4, 4000, 800, 35),
        ("cpu", 4, 4, 245, 65),
        ("cpu", 20_000, 4, 20_000, 10),
    ],
)
def test_epoch_at_native_size(device: str, images: int, megapixels: int, windows: int, epochs: int) -> None:
    """As many windows as cover the training split, at least one of each image, within limits."""
    known = {"device": device, "training_images": images, "training_pixels": megapixels * 10**6}
    settings = chosen(changes={"data.resize": "native"}, size_hw=(2000, 2000), **known)
    assert (settings.data.crops_per_epoch, settings.train.epochs) == (windows, epochs)
    again = chosen(changes={"data.resize": "native", "data.crops_per_epoch": 90}, size_hw=(2000, 2000), **known)
    assert again.data.crops_per_epoch == 90


def test_the_reason_of_the_batch_counts_what_an_epoch_draws() -> None:
    """Crops at native scale, not images; the device does not matter."""
    native = {"data.resize": "native", "data.crop": 128}
    for changes, training, count in (({}, 44, "44"), (native, 44, "500"), ({}, 2, "2")):
        pixels = 500 * 128**2
        reasons = {
            choice.reason
            for device in ("cpu", "cuda")
            for choice in chosen(
                changes=changes, training_images=training, training_pixels=pixels, device=device
            ).choices
            if choice.key == "train.batch"
        }
        (reason,) = reasons
        assert re.findall(r"\d+", reason)[0] == count


def test_where_weights_come_from() -> None:
    """Those of lite0 are installed with ubend; lite1 and lite2 need a package more, timm's a download."""
    reasons = {}
    for name in (*PIP_ENCODERS, "resnet18"):
        choices = choose_network(make_settings(changes={"model.encoder": name}))[1]
        (reasons[name],) = [choice.reason for choice in choices if choice.key == "model.pretrained"]
    lite0, lite1, lite2, resnet = reasons.values()
    assert lite1 == lite2
    assert len({lite0, lite1, resnet}) == 3


def test_frozen_copies_count_as_images_of_an_epoch() -> None:
    """As the training does; five times the images need a fifth of the epochs, and the steps stay the same."""
    plain, frozen = (chosen(changes={"augment.kind": kind}) for kind in ("none", "frozen"))
    assert FROZEN_COPIES * frozen.train.epochs == pytest.approx(plain.train.epochs, rel=0.05)
    epochs, batch = frozen.train.epochs, frozen.train.batch
    (reason,) = [choice.reason for choice in frozen.choices if choice.key == "train.ema_decay"]
    assert f"of {round(epochs * 700 * FROZEN_COPIES / batch):,} steps" in reason


def test_a_window_that_is_too_large() -> None:
    """Falls back to the image, and says so; one that is set and fits is left alone."""
    for requested, window in ((4096, 300), (300, 300), (256, 256)):
        changes = {"data.resize": "native", "data.crop": requested}
        images = choose_input_format(make_settings(changes=changes), np.array([[200, 300]]), 3, 2, {}, "cuda")
        assert images.crop == window
        said = [choice.reason for choice in images.choices if choice.key == "data.crop"]
        assert said == (["4096 was requested, but the median image has 300x200 px"] if requested == 4096 else [])


VESSEL = Width(4.0, 4 / 574)


def test_crops_per_epoch_where_crops_are_chosen() -> None:
    """Only where they are not is it refused."""
    changes = {"data.crops_per_epoch": 90}
    plan = chosen(changes=changes, size_hw=(574, 574), widths={"vessel": VESSEL})
    assert (plan.data.resize, plan.data.crops_per_epoch) == ("native", 90)
    with raises(SettingError, key="data.crops_per_epoch"):
        chosen(changes=changes, size_hw=(574, 574))


@pytest.mark.parametrize(
    ("widths", "changes", "device", "wanted"),
    [
        ({"vessel": VESSEL}, {}, "cuda", ("native", None, 256)),
        ({"vessel": VESSEL}, {}, "mps", ("native", None, 256)),
        ({"vessel": VESSEL}, {"train.border_weight": 1.0}, "cuda", ("keep", 256, None)),  # whole images only
        ({"vessel": VESSEL}, {"augment.kind": "none"}, "cuda", ("keep", 256, None)),
        ({"rim": Width(1.4, 1.4 / 574)}, {}, "cuda", ("keep", 256, None)),
        ({"rim": Width(1.4, 1.4 / 574), "cell": Width(20, 20 / 574)}, {}, "cuda", ("keep", 288, None)),
        ({"lake": Width(90, 90 / 574), "cell": Width(20, 20 / 574)}, {}, "cuda", ("keep", 288, None)),
        ({"cell": Width(12, 12 / 574), "tube": Width(20, 20 / 574)}, {}, "cuda", ("keep", 480, None)),
        ({"cell": Width(12, 12 / 574), "tube": VESSEL}, {}, "cuda", ("native", None, 256)),
        ({"cell": Width(31, 31 / 574)}, {}, "cpu", ("keep", 192, None)),
        ({"cell": Width(29, 29 / 574)}, {}, "cpu", ("native", None, 128)),
    ],
)
def test_narrow_objects(
    widths: dict[str, Width], changes: dict[str, Any], device: str, wanted: tuple[Any, ...]
) -> None:
    """The class that needs the largest size decides, except those that are narrow in the images themselves."""
    plan = chosen(changes=changes, size_hw=(584, 565), widths=widths, device=device)
    assert (plan.data.resize, plan.data.size, plan.data.crop) == wanted
    assert (plan.data.crops_per_epoch is not None) == (wanted[0] == "native")
    for choice in plan.choices:
        assert choice.key != "data.resize" or choice.value == "native"


def test_crops_at_native_scale_are_not_chosen_for_sets_that_fill_a_disk() -> None:
    """There, whole images of the largest size lose less than those of the usual size."""
    vessel = {"vessel": Width(6.0, 0.0025)}
    for count, device, wanted in (
        (300, "cuda", ("native", None)),
        (400, "cuda", ("keep", 512)),
        (400, "cpu", ("keep", 192)),
    ):
        native_hw = np.full((count, 2), (2000, 3000))
        images = choose_input_format(make_settings(), native_hw, 3, 2, vessel, device)
        assert (images.resize, images.size) == wanted
    (choice,) = (choice for choice in images.choices if choice.key == "data.size")
    assert "(--patches)" in choice.reason
    assert "2,400 megapixels" in choice.reason
