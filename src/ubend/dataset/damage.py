"""Everything that is wrong with the files of a folder, for one message."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from ubend.core.errors import DataError
from ubend.dataset.label_scan import mask_size_problem, threads
from ubend.io.images import read_image
from ubend.labels.mask_files import DrawnMask, read_codes
from ubend.layouts.pairs import Pair


def find_damage(pairs: Sequence[Pair], channels: int | None = None) -> dict[str, list[str]]:
    """Name of a pair -> what is wrong with its files; decodes them all. `channels` as in the settings.

    Empty files are passed over: `read_folder` tells them.
    """

    def look(pair: Pair) -> list[str]:
        if not all(path.is_file() and path.stat().st_size for path in (pair.image, *pair.mask.files)):
            return []
        problems: list[str] = []
        shape: tuple[int, int] | None = None
        try:
            shape = read_image(pair.image, channels).shape[:2]
        except DataError as error:
            problems += error.problems
            if isinstance(pair.mask, DrawnMask):
                return problems  # it is drawn in the size of the picture
        try:
            codes = read_codes(pair.mask, shape or (1, 1))
            if shape is not None and codes.values.shape != shape:
                problems.append(mask_size_problem(pair, codes.values.shape, shape))
        except DataError as error:
            problems += error.problems
        return problems

    with ThreadPoolExecutor(threads()) as pool:
        return {pair.name: found for pair, found in zip(pairs, pool.map(look, pairs), strict=True) if found}
