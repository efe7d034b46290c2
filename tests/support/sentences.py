"""Sentences that do not reach the catalogue, found in source code; and a catalogue that marks those that do."""

import ast
import gettext
import re
import string

from ubend.core import errors

# Our errors, and the calls whose first argument people read.
ERRORS = [name for name, one in vars(errors).items() if isinstance(one, type) and issubclass(one, errors.UbendError)]
REPORTING = ("echo", "report", "begin", "print", "UsageError", "BadParameter", "warning", "set_title", "set_xlabel")
LOOKUPS = ("_", "later", "ngettext")
UNITS = ("MiB",)


def bare_sentences(tree: ast.AST) -> list[int]:
    """Lines in which people would be shown what no catalogue can hold."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = _name(node)
        if name in (*ERRORS, *REPORTING) and any(map(_is_bare, node.args[:1])):
            found.append(node.lineno)
        if name == "draw_grid" and any(map(_is_bare, node.args[1:2])):  # its headings
            found.append(node.lineno)
        if any(word.arg == "help" and _is_bare(word.value) for word in node.keywords):
            found.append(node.lineno)
        if name in LOOKUPS and not isinstance(node.args[0], ast.Constant):
            found.append(node.lineno)
    return found


def early_lookups(tree: ast.Module) -> list[int]:
    """Lines in which `_` looks a sentence up while the file is imported, before the language is known."""
    found: list[int] = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            now = node.args.defaults + [one for one in node.args.kw_defaults if one is not None]
            for child in [*now, *getattr(node, "decorator_list", [])]:
                visit(child)
            return
        if isinstance(node, ast.Call) and _name(node) in ("_", "now", "ngettext"):
            found.append(node.lineno)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return found


def _name(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")


def _is_bare(value: ast.expr) -> bool:
    """Is it a sentence in the code that does not go through `_`?"""
    match value:
        case ast.Constant(value=str(text)):
            return any(word not in UNITS for word in re.findall(r"[^\W\d_]{2,}", text))
        case ast.JoinedStr():
            return any(map(_is_bare, value.values))
        case ast.FormattedValue():
            return _is_bare(value.value)
        case ast.BinOp():
            return _is_bare(value.left) or _is_bare(value.right)
        case ast.List() | ast.Tuple():
            return any(map(_is_bare, value.elts))
        case ast.ListComp() | ast.GeneratorExp():
            return _is_bare(value.elt)
        case ast.Call(func=ast.Attribute(value=inner, attr="format")):
            return _is_bare(inner)
        case ast.Call(func=ast.Attribute(value=inner, attr="join")):
            return _is_bare(inner) or any(map(_is_bare, value.args))
        case ast.IfExp():
            return _is_bare(value.body) or _is_bare(value.orelse)
    return False


class Marking(gettext.NullTranslations):
    """Every translated letter stands between ⟦ and ⟧, every value that was put in stands outside."""

    def gettext(self, message: str) -> str:
        marked = ""
        for text, name, spec, conversion in string.Formatter().parse(message):
            text = text.replace("{", "{{").replace("}", "}}")
            marked += f"⟦{text}⟧" if text else ""
            if name is not None:
                marked += "{" + name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "") + "}"
        return marked

    def ngettext(self, msgid1: str, msgid2: str, n: int) -> str:
        return self.gettext(msgid1 if n == 1 else msgid2)


def unmarked(said: str) -> str:
    """What people were shown beside the sentences of the catalogue."""
    return re.sub(r"⟦[^⟦⟧]*⟧", " ", said)
