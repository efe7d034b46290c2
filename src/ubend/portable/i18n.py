"""Translation of user-visible messages (gettext).

`_("sentence")` looks the sentence up in `locale/LANG/LC_MESSAGES/ubend.mo`; English is in the code.
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
    """Translate a sentence; the caller formats it with `.format(...)`."""
    return now(sentence)


def later(sentence: str) -> str:
    """Mark a sentence for translation; `now` translates it when the language is known."""
    return sentence


def now(sentence: str) -> str:
    """Translate a sentence that is not a literal here: one marked by `later`, or one of click's."""
    return _catalogue(current_language()).gettext(sentence)


def ngettext(singular: str, plural: str, number: int) -> str:
    """The sentence for `number` things in the chosen language; formatted by the caller with `.format(...)`."""
    return _catalogue(current_language()).ngettext(singular, plural, number)


def current_language() -> str:
    """The language of messages, one of LANGUAGES unless `UBEND_LANG` names another."""
    return _chosen or os.environ.get("UBEND_LANG") or "en"


def choose_language(language: str) -> None:
    """Set the language of this process; it overrides `UBEND_LANG`, and applies to click's messages, too.

    click uses gettext's current domain and the languages of the environment, so both are set.
    """
    global _chosen
    _chosen = language
    if language == "en":
        gettext.textdomain("messages")  # Python's default domain, which has no messages of click
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
            "UBEND_LANG=%r: no such language, using English; available: %s", language, ", ".join(LANGUAGES)
        )
        return gettext.NullTranslations()
    return gettext.translation("ubend", str(LOCALE_FOLDER), [language])
