"""model.safetensors: all of it comes back, and what is not one is refused in one line."""

import json
import struct
import subprocess
import sys
import tracemalloc
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from support.refusal import raises
from ubend.core.errors import ModelFileError, OutputError
from ubend.inference.predictor import Predictor
from ubend.io.images import Sizing
from ubend.labels.class_table import make_label_map
from ubend.models import model_file as subject
from ubend.models.model_file import Bundle, load_bundle, save_bundle
from ubend.models.unet import UNet

DATA = Path(__file__).parent / "data"
NETWORK = {"channels": 3, "classes": 2, "width": 2, "depth": 2, "skips": [True, False], "growth": "transposed"}
LABELS = asdict(make_label_map([0, 255], ["nền", "полип"]))
SIZING = {"size_px": 96, "keep_aspect": False, "channels": 3}


def make_bundle(seed: int = 0) -> Bundle:
    torch.manual_seed(seed)
    model = UNet(3, 2, width=2, depth=2, skips=(True, False), mean=(101.0, 102.0, 103.5), std=(51.0, 52.0, 53.5))
    with torch.no_grad():
        model.train()(torch.rand(2, 3, 16, 16) * 255)  # batch norms with statistics of their own
    labels = make_label_map([0, 255], ["nền", "полип"], ignored=(7,), reach=9)
    bundle = Bundle(model, labels, Sizing(96, False, 3), about={"data": "ổ đĩa", "scores": {"dice": [0.5, None]}})
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


def read_entry(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """ubend's header and the tensors of a file."""
    with subject.safe_open(path, "pt") as file:
        return json.loads(file.metadata()["ubend"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def write_entry(path: Path, entry: Any, tensors: dict[str, torch.Tensor]) -> None:
    """A file of these, its digest right where there is one."""
    if isinstance(entry, dict) and isinstance(entry.get("digest"), str):
        entry = {**entry, "digest": subject.find_digest(entry, tensors)}
    save_file(tensors, path, {"ubend": json.dumps(entry)})


def rewrite(path: Path, saved: bytes, change: dict[str, Any]) -> None:
    """The saved file with entries of ubend's header replaced."""
    path.write_bytes(saved)
    entry, tensors = read_entry(path)
    write_entry(path, {**entry, **change}, tensors)


@pytest.mark.parametrize("name", ["n" * 300, "missing", "file/inside"])
def test_a_file_that_cannot_be_opened(name: str, tmp_path: Path) -> None:
    """The system's reason, and not that the content is damaged."""
    (tmp_path / "file").touch()
    with raises(ModelFileError, path=tmp_path / name) as caught:
        load_bundle(tmp_path / name)
    assert "damaged model file" not in str(caught.value)


def test_newer_format(tmp_path: Path, saved: bytes) -> None:
    path = tmp_path / "m.safetensors"
    rewrite(path, saved, {"format": subject.FORMAT + 1})
    assert "pip install -U ubend" in refused(path)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"format": "one"}, "format"),
        ({"format": None}, "format"),
        ({"new": 1}, "new"),
        ({"network": {**NETWORK, "width": 4}}, "stem.0.weight"),
        ({"network": {**NETWORK, "width": 1024, "depth": 8, "skips": [True] * 8}}, "decoders.2.block.0.weight"),
        ({"network": {**NETWORK, "width": 1025}}, "network.width"),
        ({"network": {**NETWORK, "width": True}}, "network.width"),
        ({"network": {**NETWORK, "depth": 0}}, "network.depth"),
        ({"network": {**NETWORK, "depth": 10**30}}, "network.depth"),
        ({"network": {**NETWORK, "depth": 1}}, "network.skips"),
        ({"network": {**NETWORK, "new": 1}}, "network.new"),
        ({"network": {**NETWORK, "dropout": 0.5}}, "network.dropout"),
        ({"network": {**NETWORK, "kind": "paper"}}, "network.kind"),
        ({"network": {"channels": 3}}, "network.classes"),
        ({"network": []}, "network"),
        ({"labels": {}}, "labels.names"),
        ({"labels": None}, "labels"),
        ({"labels": {**LABELS, "names": ["a"]}}, "labels.names"),
        ({"labels": {**LABELS, "names": ["a", "a"]}}, "labels.names"),
        ({"labels": {**LABELS, "names": ["a", ""]}}, "labels.names"),
        ({"labels": {**LABELS, "names": ["a", "b\x1b[2J"]}}, "labels.names"),
        ({"labels": {**LABELS, "names": ["a", "b" * 201]}}, "labels.names"),
        ({"labels": {**LABELS, "colors": [[0, 0, 0]]}}, "labels.colors"),
        ({"labels": {**LABELS, "colors": [[0, 0, 0], [0, 256, 0]]}}, "labels.colors.1.1"),
        ({"labels": {**LABELS, "codes": [[0], [2**31]]}}, "labels.codes.1.0"),
        ({"labels": {**LABELS, "others": 2}}, "labels.others"),
        ({"sizing": {"size_px": 3}}, "sizing.size_px"),
        ({"sizing": {**SIZING, "channels": 1}}, "sizing.channels"),
        ({"sizing": None}, "sizing"),
        ({"dtype": "uint32"}, "dtype"),
        ({"window_px": 2**40}, "window_px"),
        ({"scale": [1.0, float("nan")]}, "scale.1"),
        ({"scale": [2.0, 1.0]}, "scale"),
        ({"bad\nname": 1}, "bad name"),
        ({"about": {"text": "x" * 2**22}}, "header"),
        ({"image_hashes": {"train": "AAAA"}}, "image_hashes.train"),
        ({"image_hashes": {"train": "no base64"}}, "image_hashes.train"),
        ({"image_hashes": {"holdout": ""}}, "image_hashes.holdout.[key]"),
    ],
)
def test_header_that_does_not_fit(change: dict[str, Any], key: str, tmp_path: Path, saved: bytes) -> None:
    path = tmp_path / "m.safetensors"
    rewrite(path, saved, change)
    refused(path)
    with raises(ModelFileError, path=path, key=key):
        load_bundle(path)


def test_encoder_of_a_header(tmp_path: Path, saved: bytes) -> None:
    """A name of several lines reaches no message; an encoder has no maxima to put values back to."""
    path = tmp_path / "m.safetensors"
    for change, key in (
        ({"encoder": "a\nb"}, "network.encoder"),
        ({"encoder": "a", "growth": "unpool"}, "network.growth"),
    ):
        rewrite(path, saved, {"network": {**NETWORK, **change}})
        with raises(ModelFileError, path=path, key=key):
            load_bundle(path)


def test_fields_of_a_network(saved: bytes, tmp_path: Path) -> None:
    """The values that the tests above change are those of the file."""
    (tmp_path / "m.safetensors").write_bytes(saved)
    bundle = load_bundle(tmp_path / "m.safetensors")
    stored = {"growth" if key == "upsampling" else key: value for key, value in bundle.model.config().items()}
    assert stored == NETWORK
    assert asdict(bundle.sizing) == SIZING


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("head.bias", None),
        ("head.new\n", torch.zeros(2)),
        ("head.bias", torch.zeros(3)),
        ("head.bias", torch.zeros(2, 1)),
        ("head.bias", torch.zeros(2, dtype=torch.int32)),
        ("head.bias", torch.zeros(2, dtype=torch.float64)),
        ("head.bias", torch.zeros(2, dtype=torch.float16)),
        ("stem.1.num_batches_tracked", torch.tensor(1.0)),
        ("head.bias", torch.tensor([0.0, float("nan")])),
        ("mean", torch.full((1, 3, 1, 1), float("inf"))),
    ],
)
def test_tensors_that_do_not_fit(name: str, tensor: torch.Tensor | None, tmp_path: Path, saved: bytes) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(saved)
    entry, tensors = read_entry(path)
    tensors.pop(name, None)
    write_entry(path, entry, tensors if tensor is None else {**tensors, name: tensor})
    refused(path)
    with raises(ModelFileError, path=path, key=name.replace("\n", " ")):
        load_bundle(path)


def test_a_field_that_cannot_be_read_is_not_written(tmp_path: Path) -> None:
    bundle = make_bundle()
    bundle.window_px = 2**20
    with raises(ModelFileError, path="m.safetensors", key="window_px"):
        save_bundle(tmp_path / "m.safetensors", bundle)
    assert not list(tmp_path.iterdir())


def test_format_2(tmp_path: Path) -> None:
    """A file of before: read as it was, predicts the mask that the ubend of then made of this image, and can be
    written in today's format."""
    number = np.arange(40 * 24 * 3)
    image = ((number * number * 7 + number * 13) % 251).astype(np.uint8).reshape(40, 24, 3)
    mask = np.asarray(Image.open(DATA / "model-format-2-mask.png"))
    old = load_bundle(DATA / "model-format-2.safetensors")
    assert (old.labels.names, old.labels.ignored, old.sizing) == (("nền", "cell", "border"), (7,), Sizing(32, True, 3))
    assert (old.window_px, old.scale, old.orientation, old.about["data"]) == (32, (1.0, 1.0), "upright", "drawn")
    save_bundle(tmp_path / "new.safetensors", old)
    for bundle in (old, load_bundle(tmp_path / "new.safetensors")):
        np.testing.assert_array_equal(Predictor(bundle, "cpu")(image).mask, mask)
    assert len(np.unique(mask)) == 3


def test_format_2_without_later_fields(tmp_path: Path) -> None:
    """The first files of format 2 had fewer fields; others that it does not know were skipped."""
    entry, tensors = read_entry(DATA / "model-format-2.safetensors")
    for name in ("window_px", "scale", "orientation", "flips"):
        del entry[name]
    write_entry(tmp_path / "m.safetensors", {**entry, "unknown": 1}, tensors)
    bundle = load_bundle(tmp_path / "m.safetensors")
    assert (bundle.window_px, bundle.scale, bundle.orientation, bundle.flips) == (None, None, None, True)


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


def fingerprint(bundle: Bundle) -> tuple[Any, ...]:
    """All that a bundle holds, except for `about`."""
    tensors = {name: tensor.numpy().tobytes() for name, tensor in bundle.model.state_dict().items()}
    rest = (bundle.dtype, bundle.precision, bundle.window_px, bundle.scale, bundle.orientation, bundle.flips)
    return (bundle.model.config(), bundle.labels, bundle.sizing, rest, tensors)


def load_or_refuse(path: Path) -> Bundle | None:
    """The bundle, or None where the file is refused in one line; in neither case much memory is taken."""
    tracemalloc.start()
    try:
        return load_bundle(path)
    except ModelFileError as error:
        told = (error.path, len(str(error).splitlines()))
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 64 * 2**20
    assert told == (path, 1)
    return None


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), header_only=st.booleans())
def test_flipped_bits(where: float, bit: int, header_only: bool, tmp_path: Path, whole: Path) -> None:
    """One flipped bit anywhere: told, unless nothing but `about` differs."""
    content = bytearray(whole.read_bytes())
    header = 8 + struct.unpack("<Q", content[:8])[0]
    content[int(where * (header if header_only else len(content)))] ^= 1 << bit
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    bundle = load_or_refuse(path)
    assert bundle is None or fingerprint(bundle) == fingerprint(load_bundle(whole))


def test_each_flipped_byte_of_a_weight_is_told(tmp_path: Path, saved: bytes) -> None:
    for place in range(8 + struct.unpack("<Q", saved[:8])[0], len(saved), 97):
        content = bytearray(saved)
        content[place] ^= 1
        (tmp_path / "m.safetensors").write_bytes(content)
        refused(tmp_path / "m.safetensors")


def places(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in nested JSON, `about` left out."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [p for key, below in inner if (*above, key) != ("about",) for p in places(below, (*above, key))]
    return [above, *found] if above else found


def replaced(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    """A copy of nested JSON with the value at a place replaced; DELETED takes it away."""
    copy = dict(value) if isinstance(value, dict) else list(value)
    if len(place) == 1 and new is DELETED:
        del copy[place[0]]
    else:
        copy[place[0]] = replaced(copy[place[0]], place[1:], new) if place[1:] else new
    return copy


DELETED = object()
DEEP = json.loads("[" * 900 + "]" * 900)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-10, 300), st.floats(), st.text(max_size=4),
    st.sampled_from([2**31, 2**63, 10**30, 10**400, -1, 1e308, "x" * 5000, "\n", "unet", "paper", "color", "nearest"]),
)  # fmt: skip
VALUES = st.one_of(
    SCALARS,
    st.just(DELETED),
    st.just(DEEP),
    st.lists(SCALARS, max_size=3),
    st.dictionaries(st.text(max_size=3), SCALARS),
)


def test_mutated_headers(tmp_path: Path, whole: Path) -> None:
    """Any value of the header replaced by any other: refused in one line, or loaded with that very header; either
    way little memory is taken. At least 5 in a hundred load."""
    entry, tensors = read_entry(whole)
    names = places(entry)
    path = tmp_path / "m.safetensors"
    tried: list[bool] = []

    @settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(place=st.sampled_from([*names, ("new",), ("network", "new")]), new=VALUES)
    def mutate(place: tuple[Any, ...], new: Any) -> None:
        if place[-1] == "new" and new is DELETED:
            return
        write_entry(path, replaced(entry, place, new), tensors)
        bundle = load_or_refuse(path)
        tried.append(bundle is not None)
        if bundle is not None:
            save_bundle(path, bundle)
            assert fingerprint(load_bundle(path)) == fingerprint(bundle)

    mutate()
    assert sum(tried) >= 0.05 * len(tried)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(about=st.dictionaries(st.text(max_size=5), st.recursive(SCALARS, st.lists, max_leaves=5), max_size=4))
def test_about_is_free(about: dict[str, Any], tmp_path: Path, whole: Path) -> None:
    """It is for people: whatever it says, the file loads."""
    entry, tensors = read_entry(whole)
    save_file(tensors, tmp_path / "m.safetensors", {"ubend": json.dumps({**entry, "about": about})})
    bundle = load_or_refuse(tmp_path / "m.safetensors")
    assert bundle is not None
    assert fingerprint(bundle) == fingerprint(load_bundle(whole))
    assert bundle.about.keys() == about.keys()


def test_a_huge_network_takes_no_memory(tmp_path: Path, saved: bytes) -> None:
    """A few kB that ask for up to terabytes: the highest memory of a process that was refused them, less that of one
    which was refused a small one."""
    path = tmp_path / "m.safetensors"

    def highest(network: dict[str, Any]) -> int:
        rewrite(path, saved, {"network": network})
        code = (
            "import resource, sys; from pathlib import Path; from ubend.models.model_file import load_bundle\n"
            "try: load_bundle(Path(sys.argv[1]))\n"
            "except Exception as error: print(type(error).__name__, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
        kind, kilobytes = done.stdout.split()
        assert kind == "ModelFileError"
        return int(kilobytes) * 1024

    huge = {**NETWORK, "width": 1024, "depth": 8, "skips": [True] * 8}
    assert highest(huge) - highest({**NETWORK, "width": 3}) < 64 * 2**20
