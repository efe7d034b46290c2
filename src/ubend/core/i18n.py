"""The language of the sentences that people see (gettext).

`_("sentence")` looks the sentence up in `locale/LANG/LC_MESSAGES/ubend.mo`; English is what stands in the code.
`--lang`, or else `UBEND_LANG`, chooses the language; the system's locale does not (docs/decisions.md).
`make messages` brings the catalogues up to date (`tools/messages.py`).
"""

import functools
import gettext
import os
from pathlib import Path

LANGUAGES = ("en", "vi")
LOCALE_FOLDER = Path(__file__).parent.parent / "locale"

_chosen: str | None = None  # by the command line


def _(sentence: str) -> str:
    """The sentence in the chosen language; formatted by the caller with `.format(...)`."""
    return now(sentence)


def later(sentence: str) -> str:
    """The sentence as it is, marked for the catalogue; `now` looks it up when the language is known."""
    return sentence


def now(sentence: str) -> str:
    """What `_` gives, for a sentence that is not written at the place: marked by `later`, or borrowed."""
    return _catalogue(_chosen or os.environ.get("UBEND_LANG") or "en").gettext(sentence)


def ngettext(singular: str, plural: str, number: int) -> str:
    """The sentence for `number` things in the chosen language; formatted by the caller with `.format(...)`."""
    return _catalogue(_chosen or os.environ.get("UBEND_LANG") or "en").ngettext(singular, plural, number)


def choose_language(language: str) -> None:
    """The language of this process, stronger than `UBEND_LANG`; click's own sentences follow.

    click asks gettext's current domain, in the languages of the environment: that is the way to reach it.
    """
    global _chosen
    _chosen = language
    if language == "en":
        gettext.textdomain("messages")  # Python's default, in which there are no sentences of click
    else:
        os.environ["LANGUAGE"] = language
        gettext.bindtextdomain("ubend", str(LOCALE_FOLDER))
        gettext.textdomain("ubend")


@functools.cache
def _catalogue(language: str) -> gettext.NullTranslations:
    if language == "en":
        return gettext.NullTranslations()
    if language not in LANGUAGES:  # only from Python: the command line refuses it
        import logging

        logging.getLogger(__name__).warning(
            "UBEND_LANG=%r: no such language, so English; there are: %s", language, ", ".join(LANGUAGES)
        )
        return gettext.NullTranslations()
    return gettext.translation("ubend", str(LOCALE_FOLDER), [language])
