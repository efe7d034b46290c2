"""Model files with random or mutated headers, loaded in processes of their own whose memory is measured.

`python -m support.hostile_headers FIRST LAST` loads the files of these seeds and prints what is wrong as JSON.
"""

import contextlib
import copy
import json
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save

from support.models import make_bundle
from ubend.core.errors import ModelFileError, SettingError, UbendError
from ubend.inference.predictor import Predictor
from ubend.models.model_file import load_bundle, save_bundle
from ubend.tasks.info import describe_model

MAX_BYTES = 2**30  # above the memory of a process that has imported everything
_HEAVY_EVERY = 250  # of so many files one has a header of tens of megabytes
Random = np.random.Generator
JSON = Any

_SCALARS: tuple[JSON, ...] = (
    *(None, True, False, 0, -0.0, 1, -1, 2, 3, 7, 8, 254, 255, 256, 1024, 1025, 8192, 65536, -3),
    *(2**31 - 1, 2**31, 2**53 + 1, 2**63, -(2**63), 10**30, 10**400, 0.5, 1e-320, 1e308, float("nan"), float("inf")),
    *("", " ", "unet", "paper", "color", "value", "nearest", "unpool", "bilinear", "resnet18", "../x", "0", "1e9"),
    *("a" * 201, "x" * 100_000, "\x1b[31m", "a\nb", "\u202e", "\ud800", "\x00", "nền", "__class__", "{path}", "%s"),
)


def _nested(depth: int, random: Random) -> JSON:
    value: JSON = None
    for _level in range(depth):
        value = [value] if random.random() < 0.5 else {"a": value}
    return value


def _any_value(random: Random) -> JSON:
    choice = int(random.integers(12))
    if choice < 7:
        return _SCALARS[int(random.integers(len(_SCALARS)))]
    if choice == 7:
        return [_any_value(random) for _item in range(int(random.integers(4)))]
    if choice == 8:
        return {str(_any_value(random))[:50]: _any_value(random) for _item in range(int(random.integers(4)))}
    if choice == 9:
        return _nested(int(random.integers(1, 300)), random)
    if choice == 10:
        return [int(random.integers(-1, 300))] * int(random.integers(1, 50_000))
    return int(random.integers(-300, 9000))


def _places(value: JSON, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [place for key, below in inner for place in _places(below, (*above, key))]
    return [above, *found] if above else found


def _mutated(entry: JSON, random: Random) -> JSON:
    """The entry with 1 to 3 values replaced, deleted or added."""
    entry, places = copy.deepcopy(entry), _places(entry)
    for _turn in range(int(random.choice([1, 1, 1, 2, 3]))):
        *above, key = places[int(random.integers(len(places)))]
        kind, other = int(random.integers(5)), places[int(random.integers(len(places)))][-1]
        held = entry
        with contextlib.suppress(KeyError, IndexError, TypeError):  # what is there no more
            for step in above:
                held = held[step]
            if kind == 0:
                del held[key]
            elif kind == 1 and isinstance(held, list):
                held.insert(key, _any_value(random))
            elif kind == 1:
                held[str(_any_value(random))[:80]] = _any_value(random)
            elif kind == 2 and isinstance(held, dict):
                held[key] = held.get(other, _any_value(random))
            else:
                held[key] = _any_value(random)
    return entry


def _random_entry(random: Random) -> JSON:
    """An entry whose fields fit each other, of a network of any size: only its tensors are not those of the file."""
    classes, channels, depth = (int(random.integers(1, most + 1)) for most in (254, 64, 8))
    network: dict[str, JSON] = {"kind": "unet", "channels": channels, "classes": classes, "depth": depth}
    network["width"] = int(random.integers(1, 1025))
    if random.random() < 0.3:
        network["kind"], network["dropout"] = "paper", 0.25
    else:
        network["skips"] = [bool(random.integers(2)) for _level in range(depth)]
        network["growth"] = str(random.choice(["transposed", "nearest", "bilinear", "unpool"]))
    labels = {
        "names": [f"class {n}" for n in range(classes)],
        "kind": str(random.choice(["value", "color"])),
        "codes": [[n] for n in range(classes)],
        "colors": [[n, n, n] for n in range(classes)],
        "ignored": [255],
        "reach": int(random.integers(100)),
        "others": None,
    }
    sizing = {"size_px": int(random.integers(8, 8193)), "keep_aspect": True, "channels": channels}
    return {"format": 3, "network": network, "labels": labels, "sizing": sizing}


def _text(entry: JSON, random: Random) -> str:
    """JSON of an entry, its text damaged now and then."""
    text = json.dumps(entry)
    choice = random.random()
    if choice < 0.7 or len(text) < 2:
        return text
    place = int(random.integers(len(text)))
    if choice < 0.8:
        return text[:place]
    piece = ("[" * 100_000, '{"a":' * 100_000, "9" * 6000, "\\ud800", '"', ",", "NaN", "\x00", "//")
    return text[:place] + piece[int(random.integers(len(piece)))] + text[place:]


def _pack(header: bytes, body: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + body


def _split(content: bytes) -> tuple[bytes, bytes]:
    end = 8 + int(struct.unpack("<Q", content[:8])[0])
    return content[8:end], content[end:]


def _damage_outer(content: bytes, random: Random) -> bytes:
    """The header of safetensors itself changed: names, dtypes, shapes and places of the tensors."""
    header, body = _split(content)
    kind = int(random.integers(4))
    if kind == 0:
        outer = _mutated(json.loads(header), random)
        return _pack(json.dumps(outer).encode(), body)
    flipped = bytearray(content)
    if kind == 1:
        size = (0, 1, len(content), 2**31, 2**63 - 1, 2**64 - 1, 100_000_000)[int(random.integers(7))]
        flipped[:8] = struct.pack("<Q", size)
    elif kind == 2:
        for _turn in range(int(random.integers(1, 9))):
            flipped[int(random.integers(8 + len(header)))] ^= 1 << int(random.integers(8))
    else:
        del flipped[int(random.integers(len(flipped))) :]
    return bytes(flipped)


def _heavy(random: Random) -> bytes:
    """A valid file of many tensors, or with metadata of tens of megabytes."""
    if random.random() < 0.5:
        header = {"__metadata__": {"ubend": "[" * 40_000_000}}
        return _pack(json.dumps(header).encode(), b"")
    count = 300_000
    header = {f"t{n}": {"dtype": "U8", "shape": [1], "data_offsets": [n, n + 1]} for n in range(count)}
    header["__metadata__"] = {"ubend": json.dumps(_random_entry(random))}  # type: ignore[dict-item]
    return _pack(json.dumps(header).encode(), bytes(count))


def make_hostile(seed: int, whole: bytes) -> bytes:
    """The content of a model file by its seed; some of them are good."""
    random = np.random.default_rng(seed)
    if seed % _HEAVY_EVERY == 0:
        return _heavy(random)
    header, _body = _split(whole)
    entry = json.loads(json.loads(header)["__metadata__"]["ubend"])
    tensors = load(whole)
    choice = random.random()
    if choice < 0.15:
        return _damage_outer(whole, random)
    if choice < 0.25:
        changed: JSON = _random_entry(random)
        changed = _mutated(changed, random) if random.random() < 0.3 else changed
    elif choice < 0.3:
        changed = _any_value(random)
    else:
        changed = _mutated(entry, random)
    if isinstance(changed, dict) and random.random() < 0.7:
        changed.pop("digest", None)  # then nothing but the schema can refuse it
    if random.random() < 0.2:
        name = list(tensors)[int(random.integers(len(tensors)))]
        kinds = (torch.float16, torch.int64, torch.bool, torch.float64, torch.uint8)
        tensor = tensors[name]
        tensors[name] = (
            tensor.to(kinds[int(random.integers(5))]),
            tensor[None],
            tensor.reshape(-1)[:0],
            torch.full_like(tensor, 1e38 if tensor.is_floating_point() else -(2**40)),
            torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else tensor,
        )[int(random.integers(5))]
    text = _text(changed, random).encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    return save(tensors, {"ubend": text})


def _judge(path: Path) -> str | None:
    """What is wrong with how a file is taken; None: refused in one line, or good and usable."""
    try:
        bundle = load_bundle(path)
    except (ModelFileError, SettingError) as error:
        said = str(error)
        if error.path != path and not isinstance(error, SettingError):
            return f"the error is about {error.path}"
        bad = [letter for letter in said if ord(letter) < 32 or ord(letter) == 127]
        return f"not one line of at most 1000 characters: {said[:300]!r}" if bad or len(said) > 1000 else None
    describe_model(path)
    try:
        if (bundle.sizing.size_px or 0) <= 256:
            channels, dtype = bundle.sizing.channels, np.dtype(bundle.dtype)
            mask = Predictor(bundle, device="cpu")(np.ones((20, 24, channels), dtype)).mask
            if mask.shape != (20, 24) or mask.max() >= bundle.labels.classes:
                return f"a mask of shape {mask.shape} with {mask.max()}"
    except UbendError:
        return None
    return "understood"


def _reset_peak() -> None:
    """Forget the highest memory of this process so far (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def run(first: int, last: int, report: Callable[[str], None] = print) -> None:
    """Load the files of the seeds first to last - 1; one JSON line says what was found."""
    torch.set_num_threads(1)
    wrong: dict[int, str] = {}
    understood, most = 0, 0
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "model.safetensors"
        save_bundle(path, make_bundle())
        whole = path.read_bytes()
        _judge(path)  # which imports what is needed
        imported = _memory("VmRSS")
        for seed in range(first, last):
            content = make_hostile(seed, whole)
            path.write_bytes(content)
            del content
            _reset_peak()
            try:
                found = _judge(path)
            except Exception as error:
                found = f"traceback: {type(error).__name__}: {error}"[:500]
            grown = _memory("VmHWM") - imported
            most = max(most, grown)
            understood += found == "understood"
            if found not in (None, "understood"):
                wrong[seed] = str(found)
            elif grown > MAX_BYTES:
                wrong[seed] = f"{grown / 2**20:.0f} MiB"
    report(json.dumps({"wrong": wrong, "understood": understood, "most_bytes": most}))


if __name__ == "__main__":
    run(int(sys.argv[1]), int(sys.argv[2]))
