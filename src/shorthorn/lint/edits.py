"""Edits of YAML text that keep every comment and blank line where its writer put it.

Owns: cutting, indenting and replacing lines by the marks of nodes. Must never: dump YAML (that
would lose comments), nor decide what to edit. Called by the rules through `Finding.mend`; `mend`
proves afterwards that nothing but the intended change happened.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import yaml

from shorthorn.lint.documents import is_null

if TYPE_CHECKING:
    from shorthorn.lint.documents import Field

#: Lines as PyYAML counts them: more characters break a line than in a text editor.
_LINE = re.compile(r".*?(?:\r\n|[\n\r\x85\u2028\u2029]|\Z)", re.DOTALL)
#: Text that means itself without quotes.
_PLAIN = re.compile(r"[A-Za-z0-9](?:[\w:/?&=%.~-]*[\w/?&=%.~-])?")
#: Columns by which a field is set in below a parent that had none; what the manifests here use.
_INDENT: Final = 2


def replace_scalar(text: str, node: yaml.Node, value: str) -> str | None:
    """Return `text` with the scalar `node` saying `value`, in the quotes it had."""
    if not isinstance(node, yaml.ScalarNode) or not _PLAIN.fullmatch(value):
        return None
    quote = {None: "", "'": "'", '"': '"'}.get(node.style)
    if quote is None:
        return None
    start, end = node.start_mark.index, node.end_mark.index
    return f"{text[:start]}{quote}{value}{quote}{text[end:]}"


def add_field(text: str, beside: Field, line: str) -> str | None:
    """Return `text` with `line` as a new line before the field `beside`, in its column."""
    lines = _lines(text)
    at, column = beside.key.start_mark.line, beside.key.start_mark.column
    if not _begins_line(lines, beside):
        return None
    return "".join([*lines[:at], f"{' ' * column}{line}{_break(lines[at])}", *lines[at:]])


def move_field(text: str, moved: Field, parent: Field) -> str | None:
    """Return `text` with the field `moved` below `parent`, set in as its siblings are.

    None where the text is not laid out line by line (flow style, tabs, explicit keys).
    """
    lines = _lines(text)
    place = _place_below(lines, parent)
    if place is None or not _begins_line(lines, moved):
        return None
    before, column = place
    first, end = _extent(lines, moved)
    block = _shifted(lines[first:end], column - moved.key.start_mark.column)
    if block is None:
        return None
    in_place = first <= before <= end or (
        before < first and all(_is_filler(line) for line in lines[before:first])
    )
    if in_place:
        return "".join([*lines[:first], *block, *lines[end:]])
    newline = _break(lines[0])
    rest = [*lines[:first], *lines[end:]]
    at = before if before <= first else before - (end - first)
    block[-1] = block[-1].rstrip("\r\n") + newline
    if at and not rest[at - 1].endswith(("\n", "\r")):
        rest[at - 1] += newline
    return "".join([*rest[:at], *block, *rest[at:]])


def _place_below(lines: list[str], parent: Field) -> tuple[int, int] | None:
    """Return the line before which a new child of `parent` goes, and its column."""
    if not _begins_line(lines, parent):
        return None
    value = parent.value
    if is_null(value) and not value.value:
        return parent.key.start_mark.line + 1, parent.key.start_mark.column + _INDENT
    if not isinstance(value, yaml.MappingNode) or value.flow_style or not value.value:
        return None
    _, end = _extent(lines, parent)
    return end, value.start_mark.column


def _extent(lines: list[str], field: Field) -> tuple[int, int]:
    """Return first line and line after the last of a field, with the comments right above it."""
    first = field.key.start_mark.line
    last = max(first, *(_last_line(lines, node) for node in _below(field)))
    indent = _indent_of(lines[first])
    while first and lines[first - 1].lstrip().startswith("#"):
        if _indent_of(lines[first - 1]) != indent:
            break
        first -= 1
    return first, last + 1


def _below(field: Field) -> list[yaml.Node]:
    """Return all nodes of a field, each once: an anchor may hold itself."""
    seen: dict[int, yaml.Node] = {}
    waiting: list[yaml.Node] = [field.key, field.value]
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen[id(node)] = node
        if isinstance(node, yaml.MappingNode):
            waiting.extend(part for pair in node.value for part in pair)
        elif isinstance(node, yaml.SequenceNode):
            waiting.extend(node.value)
    return list(seen.values())


def _last_line(lines: list[str], node: yaml.Node) -> int:
    """Return a node's last line; blocks are measured by what they hold, not by where they end.

    PyYAML ends a block collection at the next token, behind any comment, and a block scalar at
    the start of the line after it.
    """
    if isinstance(node, yaml.CollectionNode) and not node.flow_style:
        return int(node.start_mark.line)
    end = node.end_mark
    last = int(end.line) if end.column else int(end.line) - 1
    while last > node.start_mark.line and not lines[last].strip():
        last -= 1
    return max(last, int(node.start_mark.line))


def _begins_line(lines: list[str], field: Field) -> bool:
    """Whether a field is written as `key:` with nothing but spaces before it."""
    start = field.key.start_mark
    line = lines[start.line]
    behind = line[field.key.end_mark.column :].lstrip(" ")
    return not line[: start.column].strip(" ") and behind.startswith(":")


def _shifted(block: list[str], by: int) -> list[str] | None:
    if by >= 0:
        return [" " * by + line if line.strip() else line for line in block]
    if any(line.strip() and _indent_of(line) < -by for line in block):
        return None
    return [line[-by:] if line.strip() else line for line in block]


def _indent_of(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _is_filler(line: str) -> bool:
    return not line.strip() or line.lstrip().startswith("#")


def _break(line: str) -> str:
    return "\r\n" if line.endswith("\r\n") else "\n"


def _lines(text: str) -> list[str]:
    return [found for found in _LINE.findall(text) if found]
