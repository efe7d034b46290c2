"""Compare the results of two work trees: the same commands on the same drawn images, digest by digest.

    python tools/same_results.py OLD NEW [--only fit/modern predict/whole ...] [--keep FOLDER]
        [--fit-words "--encoder none --loss dice+ce"] [--renamed data.crop=data.window ...]

OLD and NEW are checkouts of this repository. Every command runs twice on the CPU, with the source of one tree and
then of the other, UBEND_ACCEL=off, one cache per tree, and the same relative paths. Compared are the epoch metrics,
the model's tensors, the scores, and every file that prediction writes; of JSON each value by itself. Prints one line
per case, also how many values and files only NEW has, and ends with 1 when any digest that OLD has differs.

After a default has changed on purpose, --fit-words gives NEW the old one: the words come first in each of its fits
that names no recipe. After a setting was renamed, --renamed NEW=OLD translates it for OLD.
"""

import argparse
import csv
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

TINY = "--size 64 --width 4 --epochs 3 --batch 8 --device cpu"
LARGE_HW = (8200, 8200)  # more than 64 megapixels: predicted by row windows

FITS = {
    "modern": f"fit cells {TINY}",
    "tutorial": f"fit cells --recipe tutorial {TINY}",
    "paper": f"fit cells --recipe paper {TINY}",
    "encoder": f"fit cells --encoder resnet18 --set model.pretrained=false {TINY}",
    "patches": f"fit cells --patches {TINY}",
    "from": f"fit cells --from runs/modern {TINY}",
    "two-processes": f"fit cells --gpus 2 {TINY}",
    "second-seed": f"fit cells --seed 1 {TINY}",
    "skips": f"fit cells --skips 1 --set model.upsampling=nearest --loss dice+focal {TINY}",
    "foreground": f"fit cells --set data.crop=32 --set data.foreground_share=0.5 {TINY}",
    "border-weights": f"fit cells --recipe paper --set train.border_weight=10 {TINY}",
    "frozen": f"fit cells --set augment.kind=frozen --set train.optimizer=sgd {TINY}",
}
PREDICTIONS = {
    "whole": "predict runs/modern cells/images --prob uint16",
    "tiles": "predict runs/patches cells/images --tiles 64 --prob npz",
    "by-rows": "predict runs/patches large.tif",
    "tta": "predict runs/modern cells/images --tta --prob uint8",
    "two-models": "predict runs/modern cells/images --with runs/second-seed",
    "thresholds": "predict runs/modern cells/images --threshold cell=0.2 --min-area 20 --fill-holes all",
    "paper": "predict runs/paper cells/images",
    "encoder": "predict runs/encoder cells/images",
    "video": "predict runs/modern film.mp4",
    "nifti": "predict runs/modern scan.nii.gz --window 80,200",
    "objects": "objects runs/modern cells/images --method distance --export coco --export geojson --truth cells/ids",
    "cutout": "cutout runs/modern cells/images --class cell",
    "cutout-soft": "cutout runs/modern cells/images --class cell --soft 4 --background #336699",
}
TIMES = ("seconds", "pictures_per_s", "images_per_s", "sha256")  # keys of JSON that depend on clock or model format


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--only", nargs="+", help="cases, such as fit/modern; the fits that they need run as well")
    parser.add_argument("--keep", type=Path, help="folder to make and to leave")
    parser.add_argument("--fit-words", default="", help="for the fits of NEW that name no recipe")
    parser.add_argument("--renamed", nargs="+", default=[], metavar="NEW=OLD", help="words of OLD's commands")
    requested = parser.parse_args()
    place = requested.keep or Path(tempfile.mkdtemp(prefix="ubend-same-"))
    trees = {"old": requested.old.resolve(), "new": requested.new.resolve()}
    try:
        prepare_inputs(place, trees)
        differing = compare_cases(place, trees, requested)
    finally:
        if requested.keep is None:
            shutil.rmtree(place, ignore_errors=True)
    print(f"{len(differing)} cases differ" + (f": {', '.join(differing)}" if differing else ""))
    sys.exit(1 if differing else 0)


def prepare_inputs(place: Path, trees: dict[str, Path]) -> None:
    """Draw the images once, with the old tree, and copy them beside both."""
    (place / "old").mkdir(parents=True)
    run_ubend("sample cells --count 24 --size 96", place, "old", trees)
    first = place / "old"
    images = sorted((first / "cells" / "images").glob("*.png"))
    (first / "film").mkdir()
    for index, image in enumerate(images[:6]):
        shutil.copy(image, first / "film" / f"{index:02d}.png")
    film = "ffmpeg -v error -framerate 5 -i film/%02d.png -pix_fmt yuv420p film.mp4"
    if shutil.which("ffmpeg"):
        subprocess.run(film.split(), cwd=first, check=True)
    write_scan(first / "scan.nii.gz", images[:5])
    write_large(first / "large.tif", images[0])
    shutil.copytree(first, place / "new")


def write_scan(path: Path, images: list[Path]) -> None:
    import nibabel

    slices = np.stack([np.asarray(Image.open(image).convert("L")) for image in images], axis=-1)
    nibabel.save(nibabel.Nifti1Image(slices.astype(np.int16), np.diag([0.5, 0.5, 2.0, 1.0])), path)


def write_large(path: Path, image: Path) -> None:
    import tifffile

    pixels = np.asarray(Image.open(image).convert("RGB"))
    repeats = [-(-side // had) for side, had in zip(LARGE_HW, pixels.shape, strict=False)]
    large = np.tile(pixels, (*repeats, 1))[: LARGE_HW[0], : LARGE_HW[1]]
    tifffile.imwrite(path, large, tile=(256, 256), photometric="rgb", compression="zlib")


def compare_cases(place: Path, trees: dict[str, Path], requested: argparse.Namespace) -> list[str]:
    """Run all cases, print a line for each, and return those that differ."""
    differing = []
    cases: dict[str, tuple[str, Callable[[Path], dict[str, str]]]] = {}
    cases |= {f"fit/{name}": (f"{words} --out runs/{name}", digest_run) for name, words in FITS.items()}
    cases |= {f"predict/{name}": (f"{words} --out out/{name}", digest_outputs) for name, words in PREDICTIONS.items()}
    wanted = set(requested.only or cases)
    wanted |= {f"fit/{name}" for name in FITS for case in wanted if f"runs/{name}" in cases[case][0]}
    for name, (words, digest) in cases.items():
        if name not in wanted or (name == "predict/video" and not shutil.which("ffmpeg")):
            continue
        found = {side: run_and_digest(translate(words, side, requested), digest, place, side, trees) for side in trees}
        unequal = sorted(key for key, value in found["old"].items() if found["new"].get(key) != value)
        added = len(found["new"].keys() - found["old"].keys())
        state = "equal" if not unequal else f"DIFFERS in {', '.join(unequal[:8])}"
        state += f"; {added} only in NEW" if added else ""
        print(f"{name:<24}{len(found['old']):>5} digests  {state}", flush=True)
        if unequal:
            differing.append(name)
    return differing


def translate(words: str, side: str, requested: argparse.Namespace) -> str:
    """A command in the words of one tree."""
    if side == "new" and words.startswith("fit cells ") and "--recipe" not in words:
        return words.replace("fit cells ", f"fit cells {requested.fit_words} ", 1)
    if side == "old":
        for pair in requested.renamed:
            words = words.replace(*pair.split("=", 1))
    return words


def run_and_digest(
    words: str, digest: Callable[[Path], dict[str, str]], place: Path, side: str, trees: dict[str, Path]
) -> dict[str, str]:
    """What a command leaves; how it failed, where it does."""
    try:
        run_ubend(words, place, side, trees)
    except subprocess.CalledProcessError as error:
        return {"failed": f"{error.returncode}", side: error.stderr[-2000:]}
    return digest(place / side / words.rsplit(maxsplit=1)[1])


def run_ubend(words: str, place: Path, side: str, trees: dict[str, Path]) -> None:
    """`ubend WORDS` with one tree's source, in that tree's folder."""
    environment = os.environ | {
        "PYTHONPATH": str(trees[side] / "src"),
        "UBEND_ACCEL": "off",
        "UBEND_CACHE": str(place / f"cache-{side}"),
        "MPLBACKEND": "agg",
        "UBEND_LANG": "en",
    }
    command = [sys.executable, "-m", "ubend", *words.split()]
    subprocess.run(command, cwd=place / side, env=environment, check=True, capture_output=True, text=True)


def digest_run(run: Path) -> dict[str, str]:
    """Epoch metrics, tensors and scores of a run folder."""
    found = {f"model:{name}": digest_array(value) for name, value in load_file(run / "model.safetensors").items()}
    history = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found |= digest_keys("metrics.jsonl", {key: [line.get(key) for line in history] for key in history[0]})
    found |= digest_keys("scores.json", json.loads((run / "scores.json").read_text()))
    with (run / "data.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            found[f"split:{row['name']}"] = row.get("split", "")
    return found


def digest_outputs(folder: Path) -> dict[str, str]:
    """Every file below a folder; JSON without what depends on the clock or the version."""
    found = dict[str, str]()
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".json":
            found |= digest_keys(name, without_times(json.loads(path.read_text())))
        elif path.is_file():
            found[name] = digest_output(path)
    return found


def digest_keys(name: str, value: Any) -> dict[str, str]:
    """JSON, each value that is no object by itself."""
    if not isinstance(value, dict):
        return {name: digest_bytes(json.dumps(value, sort_keys=True).encode())}
    found = dict[str, str]()
    for key, one in value.items():
        found |= digest_keys(f"{name}:{key}", one)
    return found


def digest_output(path: Path) -> str:
    if path.suffix == ".geojson":
        return digest_bytes(json.dumps(without_times(json.loads(path.read_text())), sort_keys=True).encode())
    if path.suffix == ".png":
        with Image.open(path) as image:
            palette = bytes(image.palette.getdata()[1]) if image.palette else b""
            return digest_bytes(palette + image.mode.encode() + np.asarray(image).tobytes())
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return digest_bytes(b"".join(name.encode() + arrays[name].tobytes() for name in sorted(arrays)))
    if path.suffix in (".mkv", ".mp4"):  # the container holds a random identifier
        frames = subprocess.run(
            ["ffmpeg", "-v", "error", "-i", str(path), "-f", "md5", "-"], check=True, capture_output=True
        )
        return frames.stdout.decode()
    if path.name.endswith(".nii.gz"):
        return digest_bytes(gzip.decompress(path.read_bytes()))
    return digest_bytes(path.read_bytes())


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(one) for key, one in value.items() if key not in (*TIMES, "ubend")}
    return [without_times(one) for one in value] if isinstance(value, list) else value


def digest_array(value: np.ndarray[Any, Any]) -> str:
    return digest_bytes(str((value.dtype, value.shape)).encode() + np.ascontiguousarray(value).tobytes())


def digest_bytes(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    main()
