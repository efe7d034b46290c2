"""Names that files may have on Linux, and that do harm where they reach a terminal, a table or a command line."""

import os

HOSTILE_NAMES = (
    "a\x1b]0;owned\x07b",  # sets a terminal's title
    "a\x1b[31;7mb",
    "a\x1b[3J\x1b[Hb",
    "a\x9b31mb",
    "a\rb",
    "a\x08\x08b\x7f",
    "a\nerror: b",
    "a\tb",
    "\u202egnp.b",
    "a\u2066b\u200fc\u2028d",
    os.fsdecode(b"caf\xe9\xff"),
    "-rf",
    "--out=x",
    "=cmd|' /C calc'!A0",
    "@SUM(1)",
    "{0}{path}%s%n",
    "[red]a[/red][link=x]",
    "$(id) `id` ; '\"",
    " a ",
    "ổ đĩa",
    "n" * 251,
)
