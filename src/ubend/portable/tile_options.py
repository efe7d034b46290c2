"""The options --tiles and --overlap."""

from .errors import SettingError
from .i18n import _

DEFAULT_OVERLAP = 0.25  # of the tile's side
WHOLE = "whole"  # --tiles: no tiles


def parse_tiles(text: str | None) -> int | None:
    """Parse --tiles: a side in px, 0 for `whole`; None if not given."""
    if text is None or text == WHOLE:
        return None if text is None else 0
    if not text.isdecimal() or int(text) == 0:
        raise SettingError(
            _("--tiles {tiles}: give a side in px, or whole for no tiles").format(tiles=text), key="--tiles"
        )
    return int(text)


def refuse_wrong_tiles(tiles: int | None, overlap: float | None) -> None:
    """Fail if the side of tiles, px, or their overlap, a fraction of it, cannot be; None: not given.

    Raises:
        SettingError: it cannot.
    """
    if tiles is not None and tiles < 0:
        raise SettingError(
            _("--tiles {tiles}: give a side in px, or 0 for whole images").format(tiles=tiles), key="--tiles"
        )
    if overlap is not None and not 0 <= overlap < 1:
        raise SettingError(
            _("--overlap {overlap}: give a fraction from 0 to less than 1").format(overlap=overlap), key="--overlap"
        )
