"""The pictures of a set must have the same channels and the same depth; told from their headers."""

from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

from ubend.core.errors import DataError, PairError
from ubend.core.i18n import _
from ubend.io.decode import read_header
from ubend.io.file_cache import KnownFiles
from ubend.io.raster import MOST_CHANNELS, Header
from ubend.layouts.pairs import Pair

_NAMED = 3  # examples of each kind
_Kind = TypeVar("_Kind", int, str)


def read_headers(pairs: Sequence[Pair], channels: int | None = None, known: KnownFiles | None = None) -> list[Header]:
    """The header of each picture; `channels` as the user says, `known` from earlier.

    Raises:
        PairError: headers that cannot be read.
    """
    known = known or KnownFiles()
    headers: list[Header] = []
    bad: dict[str, list[str]] = {}
    for pair in pairs:
        try:
            file = known.look(pair.image)
            file.header = file.header or read_header(pair.image, channels)
            headers.append(file.header)
        except DataError as error:
            bad[pair.name] = error.problems
    if bad:
        raise PairError(bad)
    return headers


def agree_channels(headers: Sequence[Header], pairs: Sequence[Pair], wanted: int | None) -> tuple[int, list[str]]:
    """The channels in which a set is read, and what the user should know of it.

    Args:
        headers: of the pairs' pictures.
        wanted: `data.channels`; None: as the pictures are, if all are alike.
    Returns:
        (channels, remarks).
    Raises:
        DataError: channels differ and nothing is wanted.
        PairError: channels that cannot become those that are wanted, or depths that differ: the pairs
            of the rarer depths are the bad ones.
    """
    names = [pair.name for pair in pairs]
    channels = wanted or _common_channels(headers, names)
    odd = [i for i, header in enumerate(headers) if not header.gives(channels)]
    if odd:
        line = _("--channels {wanted} does not fit {found}; give as many as the pictures have").format(
            wanted=channels, found=_table([headers[i].channels for i in odd], [names[i] for i in odd])
        )
        if len(odd) < len(pairs):
            line += _(", or go on without these with --skip-bad")
        raise PairError({names[i]: [line] for i in odd}, key="data.channels")
    depths = Counter(header.dtype for header in headers)
    if len(depths) > 1:
        table = _table([header.dtype for header in headers], names)
        line = _("the pictures differ in depth: {table}; save all with the same depth").format(table=table)
        common = depths.most_common(1)[0][0]
        raise PairError(
            {name: [line] for name, h in zip(names, headers, strict=True) if h.dtype != common}, key="dtype"
        )
    return channels, _remarks(headers, channels)


def _common_channels(headers: Sequence[Header], names: Sequence[str]) -> int:
    kinds = Counter(header.channels for header in headers)
    most = kinds.most_common(1)[0][0]
    if len(kinds) == 1 and most <= MOST_CHANNELS:
        return most
    if len(kinds) == 1:
        line = _("the pictures have {count} channels; at most {most} can be learnt, so keep the most informative ones")
        raise DataError(line.format(count=most, most=MOST_CHANNELS), key="data.channels")
    if set(kinds) == {1, 3}:
        cure = _("--channels 3 reads all in colour (grey is repeated), --channels 1 all in grey")
    else:
        cure = _("--channels {most} --skip-bad goes on with those that have {most}").format(most=most)
    table = _table([header.channels for header in headers], names)
    raise DataError(
        _("the pictures differ in channels: {table}; {cure}").format(table=table, cure=cure), key="data.channels"
    )


def _table(kinds: Sequence[_Kind], names: Sequence[str]) -> str:
    """`12 grey (a, b, c, ...), 3 in colour (d, e, f)`, the commonest kind first."""
    words = {
        1: _("grey"),
        3: _("in colour"),
        "uint8": _("of 8 bit"),
        "uint16": _("of 16 bit"),
        "float32": _("of float"),
    }
    parts = []
    for kind, count in Counter(kinds).most_common():
        some: list[str] = [names[i] for i, mine in enumerate(kinds) if mine == kind]
        examples = ", ".join([*some[:_NAMED], "..."] if count > _NAMED else some)
        word = words.get(kind) or _("with {channels} channels").format(channels=kind)
        parts.append(_("{count} {kind} ({examples})").format(count=count, kind=word, examples=examples))
    return ", ".join(parts)


def _remarks(headers: Sequence[Header], channels: int) -> list[str]:
    """What is done to pictures on reading that a person might not expect."""
    dropped = [header.channels + 1 for header in headers if header.alpha and header.channels + 1 != channels]
    more = max(dropped, default=0)
    lines = (
        (len(dropped), _("alpha is dropped in {count} of {all} pictures; --channels {more} keeps it, if all have it")),
        (sum(h.cmyk for h in headers), _("printing inks (CMYK) become red, green, blue in {count} of {all} pictures")),
        (sum(h.turned for h in headers), _("{count} of {all} pictures are turned upright, as their EXIF says")),
    )
    return [line.format(count=count, all=len(headers), more=more) for count, line in lines if count]
