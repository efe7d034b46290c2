"""Which colours of a data set's masks are classes, and which are noise of JPEG or blends of resampling."""

import numpy as np
from numpy.typing import NDArray

from ubend.errors import DataError
from ubend.language import _
from ubend.masks.codes import code_words, unpack_color
from ubend.masks.labels import ROUNDING_REACH, make_label_map
from ubend.masks.survey import LISTED, Tally, value_table

MOST_FOUND = 64  # masks of more codes are resampled, lossy, or no masks
MAIN_SHARE = 0.003  # a code of noisy masks is a class of its own if it holds this share of all pixels
MAIN_DISTANCE = 24  # ... and no commoner code lies this near: JPEG's ringing stays well inside
_PEAK_DISTANCE, _PEAK_SHARE = 6, 0.5  # ... and half of the colours around it are this near: blends are spread
_TWO_ENDS_SHARE = 0.97  # JPEG masks with this share of their pixels near 0 and near 255 are black and white
_BLEND_DISTANCE = 64  # of noisy masks: a colour this near to the line between two classes is a blend of them
_CLEAN_BLEND_DISTANCE = 4  # of masks that were resampled, but saved without loss
_UNEXPLAINED_SHARE = 0.005  # of all pixels: more colours that are neither noise nor blends may be a class
_BLENDS_SHARE = 0.05  # of all pixels: more blends than these, far from every class, may be a class between two
_STRAY_SHARE = 0.01  # of its neighbour's pixels: a colour nearly like another one and so much rarer is a slip
_MOST_POINTS = 20_000  # colours, the commonest, among which classes are looked for


def find_main_colors(tally: Tally, lossy: bool) -> tuple[list[int], bool]:
    """The colours that are classes, ascending, and whether noise or blends of them lie around.

    Raises:
        DataError: the colours do not tell the classes.
    """
    if not lossy and len(tally.codes) <= MOST_FOUND and not _mostly_blends(tally):
        return _without_strays(tally), False
    codes = _main_colors(_commonest(tally))
    _refuse_unexplained(tally, codes)
    return codes, True


def find_main_values(tally: Tally) -> list[int]:
    """The values that stand for classes in JPEG masks, whose noise spreads each over its neighbours.

    Raises:
        DataError: the values do not tell the classes.
    """
    pixels, total = np.zeros(65536, np.int64), int(tally.pixels.sum())
    pixels[tally.codes] = tally.pixels

    def around(value: int, distance: int) -> int:
        return int(pixels[max(0, value - distance) : value + distance + 1].sum())

    low, high = around(0, MAIN_DISTANCE - 1), around(255, MAIN_DISTANCE - 1)
    if low and high and low + high >= _TWO_ENDS_SHARE * total:
        return [0, 255]
    main: list[int] = []
    for value in np.argsort(-pixels[:256], kind="stable").tolist():
        near = around(value, MAIN_DISTANCE // 2)
        peak = around(value, _PEAK_DISTANCE) >= _PEAK_SHARE * near
        if near >= MAIN_SHARE * total and peak and all(abs(value - other) >= MAIN_DISTANCE for other in main):
            main.append(value)
    main = sorted(main)
    explained = sum(around(value, MAIN_DISTANCE // 2) for value in main)
    if len(main) > 2 and explained < (1 - _BLENDS_SHARE) * total:
        raise DataError(
            _(
                "these JPEG masks do not tell their classes: {table} are common, but {share:.1%} of the pixels hold "
                'other values; name them: --values "{cure},*=nearest"'
            ).format(
                table=value_table(tally, "value"),
                share=1 - explained / total,
                cure=",".join(f"{value}=name{number}" for number, value in enumerate(main, 1)),
            ),
            key="data.values",
        )
    return main


def _points(codes: NDArray[np.int32]) -> NDArray[np.float64]:
    """(K,) colour codes -> (K, 3)."""
    return np.stack(unpack_color(codes), axis=-1).astype(np.float64)


def _commonest(tally: Tally) -> Tally:
    keep = np.sort(np.argsort(-tally.pixels, kind="stable")[:_MOST_POINTS])
    return Tally(tally.codes[keep], tally.pixels[keep], tally.masks[keep])


def _without_strays(tally: Tally) -> list[int]:
    """All colours but those that are nearly like a far commoner one.

    Raises:
        DataError: two that are nearly alike, and both common.
    """
    points, main = _points(tally.codes), list[int]()
    for number in np.argsort(-tally.pixels, kind="stable").tolist():
        near = [i for i in main if np.linalg.norm(points[i] - points[number]) <= ROUNDING_REACH]
        if not near:
            main.append(number)
        elif tally.pixels[number] > _STRAY_SHARE * tally.pixels[near[0]]:
            pair = sorted((int(tally.codes[near[0]]), int(tally.codes[number])))
            raise DataError(
                _(
                    "the masks hold colours that are nearly alike: {pair} among {table}; if each is a class, name all: "
                    '--values "{cure}", else give both of them one name'
                ).format(
                    pair=code_words(pair, "color"),
                    table=value_table(tally, "color"),
                    cure=",".join(f"#{code:06x}=name{i}" for i, code in enumerate(tally.codes[:LISTED].tolist(), 1)),
                ),
                key="data.values",
            )
    return sorted(int(tally.codes[i]) for i in main)


def _mostly_blends(tally: Tally) -> bool:
    """Are there more rare colours between two common ones than common ones? So it is after resampling."""
    common = tally.pixels >= MAIN_SHARE * tally.pixels.sum()
    blends = _between(_points(tally.codes[~common]), tally.codes[common].tolist(), _CLEAN_BLEND_DISTANCE)
    return bool(blends.sum() > common.sum())


def _main_colors(tally: Tally) -> list[int]:
    """The colours that stand for classes among noise and blends: common, far from commoner ones, and peaks."""
    total = int(tally.pixels.sum())
    points = _points(tally.codes)
    left, main = tally.pixels.copy(), list[int]()
    while left.any() and len(main) <= MOST_FOUND:
        top = int(left.argmax())
        distance = np.linalg.norm(points - points[top], axis=1)
        around, peak = (int(tally.pixels[distance <= d].sum()) for d in (MAIN_DISTANCE, _PEAK_DISTANCE))
        if left[top] < MAIN_SHARE * total / 1000:
            break  # the commonest that is left is a thousandth of a class: nothing but noise follows
        if around >= MAIN_SHARE * total and peak >= _PEAK_SHARE * around:
            main.append(int(tally.codes[top]))
        left[distance <= 2 * MAIN_DISTANCE] = 0
    return sorted(main)


def _between(points: NDArray[np.float64], ends: list[int], reach: float) -> NDArray[np.bool_]:
    """(K,) whether each of (K, 3) colours lies at most `reach` from the line between two of the ends, or from one."""
    corners = [_points(np.array(code, np.int32)) for code in ends]
    found = np.zeros(len(points), np.bool_)
    for number, end in enumerate(corners):
        for other in corners[number:]:
            along, left = other - end, np.flatnonzero(~found)
            place = ((points[left] - end) @ along / max(1.0, float(along @ along))).clip(0, 1)
            found[left] = np.linalg.norm(points[left] - end - place[:, None] * along, axis=1) <= reach
    return found


def _near(points: NDArray[np.float64], codes: list[int], reach: float) -> NDArray[np.bool_]:
    """(K,) whether each of (K, 3) colours lies at most `reach` from one of the codes."""
    near = [np.linalg.norm(points - _points(np.array(code, np.int32)), axis=1) <= reach for code in codes]
    return np.any(near, axis=0) if near else np.zeros(len(points), np.bool_)


def _refuse_unexplained(tally: Tally, main: list[int]) -> None:
    """Fail when many pixels are neither near a main colour nor a blend of two: a class drawn in thin lines, say.

    So is a class that lies between two others: JPEG makes the like of two.
    """
    bins, which = np.unique(tally.codes & 0xFCFCFC, return_inverse=True)  # in steps of 4: photographs hold millions
    points, pixels = _points(bins) + 2, np.bincount(which, tally.pixels, len(bins))
    total = float(pixels.sum())
    doubtful = []
    for code in main:
        others, own = [other for other in main if other != code], _near(points, [code], MAIN_DISTANCE)
        if (
            _between(_points(np.array([code])), others, _BLEND_DISTANCE)[0]
            and pixels[own].sum() < _BLENDS_SHARE * total
        ):
            doubtful.append(code)
    main = [code for code in main if code not in doubtful]
    explained = _between(points, main, _BLEND_DISTANCE) & ~_near(points, doubtful, MAIN_DISTANCE)
    if len(main) >= 2 and pixels[~explained].sum() <= _UNEXPLAINED_SHARE * total:
        explained = _near(points, main, _BLEND_DISTANCE)
        if pixels[~explained].sum() <= _BLENDS_SHARE * total:
            return
    explained = explained[which]
    share = tally.pixels[~explained].sum() / total
    rest = Tally(tally.codes[~explained], tally.pixels[~explained], tally.masks[~explained])
    if not main:
        raise DataError(
            _(
                "the masks hold {count} colours, and none is common ({table}): are these photographs, no masks? "
                'If not, name every class: --values "#rrggbb=name,...,*=nearest"'
            ).format(count=len(tally.codes), table=value_table(rest, "color", int(total))),
            key="data.values",
        )
    names = make_label_map(main, None, "color").names if main else ()
    known = [f"#{code:06x}={name}" for code, name in zip(main, names, strict=True)]
    extra = [int(rest.codes[rest.pixels.argmax()])] if len(rest.codes) and len(main) < LISTED else []
    raise DataError(
        _(
            "the masks hold {count} colours; {known} are common, but {share:.1%} of the pixels hold others ({table}), "
            'which noise and resampling do not explain: name every class, such as --values "{cure},*=nearest"; '
            "or are these photographs, no masks?"
        ).format(
            count=len(tally.codes),
            known=code_words(main, "color", LISTED),
            share=share,
            table=value_table(rest, "color", int(total)),
            cure=",".join([*known, *(f"#{code:06x}=name" for code in extra)]),
        ),
        key="data.values",
    )
