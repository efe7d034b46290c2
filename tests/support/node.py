"""Programs in Node, and packages of npm for them."""

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

NODE, NPM = shutil.which("node"), shutil.which("npm")
NEEDS_NODE = pytest.mark.skipif(NODE is None, reason="no Node.js; apt-get install nodejs npm")


def run_node(program: str, given: Any, folder: Path) -> Any:
    """What a program in JavaScript answers.

    Args:
        program: the body of an async function of `given`, in which `bytes(text)` and `text(bytes)` are base64.
        given: JSON.
        folder: for its files.
    Returns:
        JSON.
    """
    assert NODE is not None
    (folder / "given.json").write_text(json.dumps(given))
    (folder / "program.js").write_text(
        'const bytes = (text) => Uint8Array.from(Buffer.from(text, "base64"));\n'
        'const text = (array) => Buffer.from(array.buffer, array.byteOffset, array.byteLength).toString("base64");\n'
        f"async function main(given) {{\n{program}\n}}\n"
        'main(JSON.parse(require("fs").readFileSync("given.json"))).then((answer) =>\n'
        '  require("fs").writeFileSync("answer.json", JSON.stringify(answer)));\n'
    )
    done = subprocess.run([NODE, "program.js"], cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "answer.json").read_text())


def to_text(array: NDArray[Any]) -> str:
    """The bytes of an array, in base64."""
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def to_array(text: str, dtype: str) -> NDArray[Any]:
    return np.frombuffer(base64.b64decode(text), dtype)
