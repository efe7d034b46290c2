"""model.safetensors: all of it comes back, and what is not one is refused in one line."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from support.refusal import raises
from ubend.core.errors import ModelFileError, OutputError
from ubend.io.images import Sizing
from ubend.labels.class_table import make_label_map
from ubend.models import model_file as subject
from ubend.models.model_file import Bundle, load_bundle, save_bundle
from ubend.models.unet import UNet


def make_bundle(seed: int = 0) -> Bundle:
    torch.manual_seed(seed)
    model = UNet(3, 2, 2, 2, (True, False), mean=(101.0, 102.0, 103.5), std=(51.0, 52.0, 53.5))
    with torch.no_grad():
        model.train()(torch.rand(2, 3, 16, 16) * 255)  # batch norms with statistics of their own
    labels = make_label_map([0, 255], ["nền", "полип"], ignored=(7,), reach=9)
    bundle = Bundle(model, labels, Sizing(96, False, 3), {"data": "ổ đĩa", "scores": {"dice": [0.5, None]}})
    bundle.orientation = "free"
    return bundle


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("bundle") / "model.safetensors"
    save_bundle(path, make_bundle())
    return path.read_bytes()


def refused(path: Path) -> str:
    """The one line with which a file is refused; it names the file."""
    with pytest.raises(ModelFileError) as caught:
        load_bundle(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_round_trip(tmp_path: Path) -> None:
    """Weights bit by bit, class table, sizing and story; the run folder stands for its file."""
    bundle = make_bundle()
    save_bundle(tmp_path / "model.safetensors", bundle)
    for path in (tmp_path / "model.safetensors", tmp_path):
        loaded = load_bundle(path)
        assert (loaded.labels, loaded.sizing, loaded.about) == (bundle.labels, bundle.sizing, bundle.about)
        assert loaded.model.skips == (True, False)
        assert loaded.orientation == "free"
        assert not loaded.model.training
        mine, theirs = bundle.model.state_dict(), loaded.model.state_dict()
        assert list(mine) == list(theirs)
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    every = np.arange(256, dtype=np.int32)
    for one, other in zip(loaded.labels.classify(every), bundle.labels.classify(every), strict=True):
        np.testing.assert_array_equal(one, other)


def test_channels_last_weights_are_stored_alike(tmp_path: Path, saved: bytes) -> None:
    """The file does not depend on how the weights lie in memory."""
    bundle = make_bundle()
    bundle.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    save_bundle(tmp_path / "model.safetensors", bundle)
    assert (tmp_path / "model.safetensors").read_bytes() == saved


def test_other_weights_stand_in(tmp_path: Path) -> None:
    other = make_bundle(1).model.state_dict()
    save_bundle(tmp_path / "m.safetensors", make_bundle(0), other)
    loaded = load_bundle(tmp_path / "m.safetensors").model.state_dict()
    assert all(torch.equal(loaded[name], other[name]) for name in other)


@pytest.fixture
def whole(tmp_path: Path, saved: bytes) -> Path:
    """A file for a property test to damage copies of: hypothesis tires of naming long bytes."""
    path = tmp_path / "whole.safetensors"
    path.write_bytes(saved)
    return path


def test_truncated(tmp_path: Path, saved: bytes) -> None:
    """Cut at any length, also within the header, within the last byte, and to nothing."""
    path = tmp_path / "model.safetensors"
    header = 8 + struct.unpack("<Q", saved[:8])[0]
    lengths = {0, 1, 7, 8, 9, 100, header - 1, header, header + 1, len(saved) // 2, len(saved) - 1}
    for length in sorted(lengths | set(range(0, len(saved), 977))):
        path.write_bytes(saved[:length])
        refused(path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=400))
def test_random_bytes(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    refused(path)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1), value=st.integers(0, 255))
def test_damaged_header(where: float, value: int, tmp_path: Path, whole: Path) -> None:
    """One changed byte before the weights: loaded or refused in one line, no other error."""
    content = bytearray(whole.read_bytes())
    header = 8 + struct.unpack("<Q", content[:8])[0]
    content[int(where * (header - 1))] = value
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    message = ""
    try:
        load_bundle(path)
    except ModelFileError as error:
        message = str(error)
    assert "\n" not in message


def test_missing(tmp_path: Path) -> None:
    refused(tmp_path / "none.safetensors")
    with raises(ModelFileError, path="model.safetensors"):
        load_bundle(tmp_path)  # a folder that holds no model


def test_not_ours(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    for metadata in (None, {"format": "pt"}):
        save_file({"weight": torch.zeros(3)}, path, metadata)
        with raises(ModelFileError, path=path, key="metadata"):
            load_bundle(path)


def rewrite(path: Path, saved: bytes, change: dict[str, Any]) -> None:
    """The saved file with entries of ubend's header replaced."""
    path.write_bytes(saved)
    with subject.safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(file.metadata()["ubend"])
    save_file(tensors, path, {"ubend": json.dumps({**header, **change})})


def test_newer_format(tmp_path: Path, saved: bytes) -> None:
    path = tmp_path / "m.safetensors"
    rewrite(path, saved, {"format": subject.FORMAT + 1})
    assert "pip install -U ubend" in refused(path)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "one"},
        {"format": None},
        {"network": {"channels": 3, "classes": 2, "width": 4, "depth": 2, "skips": [True, False]}},
        {"network": {"channels": 3, "classes": 2, "width": 2, "depth": 1, "skips": [True, False]}},
        {"network": {"channels": 3, "classes": 2, "width": 2, "depth": 2, "skips": [True, False], "new": 1}},
        {"network": {"channels": 3}},
        {"network": []},
        {"labels": {}},
        {"labels": None},
        {"sizing": {"size_px": 3}},
        {"sizing": None},
    ],
)
def test_header_that_does_not_fit(change: dict[str, Any], tmp_path: Path, saved: bytes) -> None:
    path = tmp_path / "m.safetensors"
    rewrite(path, saved, change)
    refused(path)


@pytest.mark.parametrize("entry", ["", "[]", "3", '"x"', "null", "{", "{}"])
def test_header_that_is_none(entry: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"weight": torch.zeros(3)}, path, {"ubend": entry})
    refused(path)


def test_failed_writing_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up half way: an OutputError, the old model whole, nothing beside it."""
    path = tmp_path / "model.safetensors"
    save_bundle(path, make_bundle(0))
    before = path.read_bytes()

    def fill(_tensors: Any, target: Path, _header: Any) -> None:
        Path(target).write_bytes(before[:1000])
        raise subject.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(subject, "save_file", fill)
    with raises(OutputError, path=path, named=["No space left"]):
        save_bundle(path, make_bundle(1))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
