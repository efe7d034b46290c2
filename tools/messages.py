"""Bring the catalogues of sentences up to date with the source, and compile them.

make messages

1. Extract what stands in `_("...")`, `later("...")` and `ngettext("...", "...", n)` below src, add the lessons'
   explanations (a TOML file) and what is borrowed (below).
2. Update src/ubend/locale/LANG/LC_MESSAGES/ubend.po: a new sentence comes in empty, or with the translation of
   the sentence most like it and the mark `#, fuzzy`; one that is gone goes.
3. Compile it to ubend.mo, which is what the program reads. Both are committed.

Then it lists what is left to do: translate the empty ones, mend the fuzzy ones and delete their mark, run it again.
The files hold no date, no name and no line number, so that equal sentences give equal files.
"""

import io
import sys
from collections.abc import Iterator
from pathlib import Path

from babel.messages.catalog import Catalog, Message
from babel.messages.extract import extract_from_dir
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

from ubend.core.click_i18n import NUMBER_TYPES
from ubend_lessons.explain import list_sentences

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"  # of all packages, which share the catalogues
LOCALE = SOURCE / "ubend" / "locale"
KEYWORDS = {"_": None, "later": None, "ngettext": (1, 2)}

# Sentences of click that its users meet; singular and plural where click counts.
CLICK: list[str | tuple[str, str]] = [
    "Usage:",
    "Options",
    "Commands",
    "default: {default}",
    "required",
    "Error: {message}",
    "Aborted!",
    "Try '{command} {option}' for help.",
    "Missing command.",
    "Missing argument",
    "Missing option",
    "Invalid value: {message}",
    "Invalid value for {param_hint}: {message}",
    "No such command {name!r}.",
    "No such option {name!r}.",
    "No such option: {name}",
    "Option {name!r} does not take a value.",
    "{value!r} is not a valid {number_type}.",
    "{value} is not in the range {range}.",
    "Choose from:\n\t{choices}",
    *NUMBER_TYPES,
    ("Did you mean {possibility}?", "(Did you mean one of: {possibilities}?)"),
    ("Got unexpected extra argument ({args})", "Got unexpected extra arguments ({args})"),
    ("Option {name!r} requires an argument.", "Option {name!r} requires {nargs} arguments."),
    ("{value!r} is not {choice}.", "{value!r} is not one of {choices}."),
]
# What the system says of files (os.strerror), and what ubend quotes of it.
SYSTEM = [
    "No such file or directory",
    "Permission denied",
    "Is a directory",
    "Not a directory",
    "File exists",
    "File name too long",
    "No space left on device",
    "Read-only file system",
    "Disk quota exceeded",
    "Input/output error",
    "Too many open files",
]


class PlainCatalog(Catalog):
    """A catalogue whose header says only what gettext needs."""

    def __iter__(self) -> Iterator[Message]:
        _header, *messages = super().__iter__()
        headers = {
            "Language": self.locale,
            "MIME-Version": "1.0",
            "Content-Type": "text/plain; charset=utf-8",
            "Content-Transfer-Encoding": "8bit",
            "Plural-Forms": self.plural_forms,
        }
        yield Message("", "\n".join(f"{name}: {value}" for name, value in headers.items()))
        yield from messages


def extract() -> Catalog:
    """Every sentence of the source, with the files that say it, and the borrowed ones."""
    template = Catalog()
    found = extract_from_dir(SOURCE, [("**.py", "python"), ("**.html", "jinja2")], keywords=KEYWORDS)
    for name, _line, sentence, _comments, _context in sorted(found, key=lambda one: (one[0], one[1])):
        template.add(sentence, locations=[(f"src/{Path(name).as_posix()}", 1)])
    for sentence in list_sentences():
        template.add(sentence, locations=[("src/ubend_lessons/explanations.toml", 1)])
    for sentence in CLICK:
        template.add(sentence, locations=[("click", 1)])
    for sentence in SYSTEM:
        template.add(sentence, locations=[("the system", 1)])
    return template


def read(language: str) -> PlainCatalog:
    """The catalogue of a language as it is in its .po file; empty when there is none yet."""
    catalog = PlainCatalog(
        locale=language, fuzzy=False, header_comment=f"# Sentences of ubend ({language}); see tools/messages.py."
    )
    path = po_path(language)
    if path.exists():
        with path.open("rb") as file:
            for message in read_po(file, locale=language):
                if message.id:
                    catalog[message.id] = message
    return catalog


def update(language: str) -> PlainCatalog:
    """The catalogue with exactly the sentences of the source."""
    catalog = read(language)
    catalog.update(extract(), update_header_comment=False)
    return catalog


def render(catalog: Catalog) -> bytes:
    """The text of its .po file."""
    text = io.BytesIO()
    write_po(text, catalog, width=0, sort_by_file=True, include_lineno=False, ignore_obsolete=True)
    return text.getvalue()


def compiled(catalog: Catalog) -> bytes:
    """The bytes of its .mo file."""
    data = io.BytesIO()
    write_mo(data, catalog)
    return data.getvalue()


def open_sentences(catalog: Catalog) -> list[str]:
    """A line for each sentence that has no translation, or one that was guessed."""
    lines = []
    for message in catalog:
        strings = message.string if isinstance(message.string, list | tuple) else [message.string]
        if message.id and not all(strings):
            lines.append(f"untranslated: {message.id}")
        elif message.id and message.fuzzy:
            lines.append(f"fuzzy: {message.id}\n    now: {message.string}")
    return lines


def po_path(language: str) -> Path:
    return LOCALE / language / "LC_MESSAGES" / "ubend.po"


def main() -> None:
    languages = sorted(path.name for path in LOCALE.iterdir() if path.is_dir())
    left = []
    for language in languages:
        catalog = update(language)
        po_path(language).write_bytes(render(catalog))
        po_path(language).with_suffix(".mo").write_bytes(compiled(catalog))
        left += open_sentences(catalog)
        print(f"{language}: {len(catalog)} sentences, {len(left)} left to translate")
    print("\n".join(left))
    sys.exit(1 if left else 0)


if __name__ == "__main__":
    main()
