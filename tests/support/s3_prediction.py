"""Predict images in a bucket of moto's server, on loopback; the objects that were made go to a folder.

    python s3_prediction.py FOLDER [SECONDS]

FOLDER has `images` and `model.safetensors`; `objects` is written there. With SECONDS the command is killed that long
after its first mask, and resumed. Run it in a network namespace of its own: Ray does not stay on loopback.

Where there is no GPU, Ray is told that there is one, which two processes share; it does not look for it.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import s3fs
import torch
from moto.server import ThreadedMotoServer

PORT = 5055
ENVIRONMENT = {
    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{PORT}",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
}


def start_ray(*processors: str) -> None:
    """Start a node of Ray, which ends with the namespace."""
    ray = [sys.executable, "-c", "from ray.scripts.scripts import main; main()"]
    more = ["--include-dashboard", "false", "--disable-usage-stats", "--object-store-memory", "100000000"]
    subprocess.run([*ray, "start", "--head", *processors, *more], check=True)


def count_masks(storage: s3fs.S3FileSystem) -> int:
    return len([name for name in storage.find("cells/out") if name.endswith("_overlay.png")])


def refusals(command: list[str], environment: dict[str, str]) -> None:
    """Print the line of a bucket that is not there, and of missing credentials."""
    without = {name: value for name, value in environment.items() if "KEY" not in name}
    for bucket, given in (("nowhere", environment), ("cells", without)):
        words = [word.replace("s3://cells", f"s3://{bucket}") for word in command]
        refused = subprocess.run(words, env=given, capture_output=True, text=True, timeout=120, check=False)
        print(f"refused {refused.returncode}: {refused.stderr.strip()}", flush=True)


def main() -> None:
    folder, seconds = Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else None
    environment = {**os.environ, **ENVIRONMENT}
    os.environ |= ENVIRONMENT
    server = ThreadedMotoServer("127.0.0.1", PORT, verbose=False)
    server.start()
    storage = s3fs.S3FileSystem(use_listings_cache=False)
    storage.mkdir("cells")
    for path in (folder / "images").iterdir():
        storage.put_file(str(path), f"cells/images/{path.name}")
    words = ["predict", str(folder / "model.safetensors"), "s3://cells/images", "--out", "s3://cells/out"]
    command = [sys.executable, "-m", "ubend", *words, "--cluster", "auto"]
    if torch.cuda.is_available():
        command += ["--device", "cpu"]
    else:
        start_ray("--num-cpus", "2", "--num-gpus", "1")
        command += ["--gpu-share", "0.5"]
    if seconds is None:
        refusals(command, environment)
    else:
        with subprocess.Popen(command, env=environment) as process:
            while not count_masks(storage):
                assert process.poll() is None
                time.sleep(0.2)
            time.sleep(seconds)
            process.send_signal(signal.SIGKILL)
        print(f"killed at {count_masks(storage)} masks", flush=True)
        command.append("--resume")
    subprocess.run(command, env=environment, check=True)
    (folder / "objects").mkdir()
    for name in storage.find("cells/out"):
        storage.get_file(name, str(folder / "objects" / name.rpartition("/")[2]))
    server.stop()


if __name__ == "__main__":
    main()
