"""The example in Node.js of docs/deploy.md gives the runtime's mask."""

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from support import ROOT
from support.exports import NEEDS_EXPORT, contract_text, describe, make_bundle, make_graph, settle, to_bytes
from support.node import NEEDS_NODE, NODE, NPM
from ubend.exporting.ort_web import GLUE, SCRIPT, WASM
from ubend.exporting.web_page import write_folder
from ubend.models.unet import UNet
from ubend.portable.model import load

pytestmark = [NEEDS_EXPORT, NEEDS_NODE, pytest.mark.slow]
# The oldest onnxruntime that reads exported files: 31 MB to download, 113 MB of 1.30.
PACKAGES = ("onnxruntime-node@1.14.0", "pngjs@7.0.0")


@pytest.fixture
def packages(tmp_path: Path) -> None:
    """npm's packages, in the folder of the test; their scripts, which would download libraries for GPUs, do not run."""
    if NPM is None:
        pytest.skip("no npm; apt-get install npm")
    words = [NPM, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(tmp_path), *PACKAGES]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=600, cwd=tmp_path)
    if done.returncode:
        pytest.skip(f"npm cannot install {' '.join(PACKAGES)}: {done.stderr.strip().splitlines()[-1:]}")


def test_the_example(packages: None, tmp_path: Path) -> None:
    assert NODE is not None
    torch.manual_seed(5)
    net = settle(UNet(3, 3, width=4, depth=2, mean=[120.0] * 3, std=[60.0] * 3))
    pixels = np.random.default_rng(4).integers(0, 256, (11, 9, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    with torch.no_grad():  # all classes occur
        assert isinstance(net.head.bias, torch.Tensor)
        net.head.bias -= net(torch.from_numpy(pixels).permute(2, 0, 1)[None].float()).mean((0, 2, 3))
    bundle = make_bundle(net)
    contract = describe(Path("none"), bundle, "fp32")
    runtime = dict.fromkeys((SCRIPT, GLUE, WASM), b"")  # which only browsers need
    write_folder(tmp_path / "web", to_bytes(make_graph(bundle), contract_text(contract)), contract, runtime)
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```js\n(.*?)```", page, re.S)
    (tmp_path / "program.js").write_text(program)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    words = [NODE, "program.js", "image.png", "mask.png"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    wanted = load(tmp_path / "web" / "model.onnx", threads=1)(tmp_path / "image.png").mask
    with Image.open(tmp_path / "mask.png") as mask:
        made = np.asarray(mask)
    assert len(np.unique(wanted)) == 3
    assert made.shape == wanted.shape
    assert (made != wanted).mean() < 1e-3
