"""Seconds from decoded pixels to the mask in headless Chromium, of a page that `ubend export --to web` wrote.

python benchmarks/web_speed.py PAGE [IMAGE]     # the page's folder or its single file; else a drawn image of 256 px
"""

import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from PIL import Image

from chromium import Browser, open_browser, serve
from timing import make_parser, print_facts, read_facts, spread_words, summarise, write_report


def time_page(browser: Browser, address: str, image: Path, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds by the page's clock, and of the processor, of `rounds` predictions after two that warm up."""
    browser.open(address)
    browser.wait("worker && document.getElementById('status').textContent === texts.ready")
    browser.evaluate("window.times = []; worker.addEventListener('message', ({ data }) => times.push(data.seconds)); 0")
    used = list[float]()
    for number in range(1, rounds + 3):
        before = browser.processor_seconds()
        browser.choose("#files", image)
        browser.wait(f"document.querySelectorAll('article').length === {number} && !isBusy")
        used.append(browser.processor_seconds() - before)
    times: list[float] = browser.evaluate("times.filter(Number.isFinite)")
    return times[2:], used[2:]


def main(words: Sequence[str]) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("image", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=11, help="after two that warm up  [11]")
    args = parser.parse_args(words)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        image = args.image or folder / "drawn.png"
        if args.image is None:
            pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).resize((256, 256)).save(image)
        address = args.page.resolve().as_uri()
        if args.page.is_dir():
            address = stack.enter_context(serve(args.page))
        browser = stack.enter_context(open_browser(folder / "profile"))
        seconds, used = time_page(browser, address, image.resolve(), args.rounds)
    facts = read_facts(None)
    print_facts(facts)
    rows = [{"name": "mask", **summarise(seconds)}, {"name": "mask and drawing, processor", **summarise(used)}]
    for row in rows:
        print(f"{row['name']:28} {spread_words(row, 3)} s")
    write_report(__file__, words, args, facts=facts, unit="s", rows=rows)


if __name__ == "__main__":
    main(sys.argv[1:])
