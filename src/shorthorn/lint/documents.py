"""YAML text as documents whose nodes know their lines.

Owns: splitting a stream, composing nodes, looking fields up. Must never: construct Python objects
(tags could run code, anchors could explode) or judge what it finds. Called by the rules.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

_MARKER = re.compile(r"^---(?=[ \t\r\n]|\Z)", re.MULTILINE)
_STRING = "tag:yaml.org,2002:str"
_NULL = "tag:yaml.org,2002:null"


class BrokenYaml(ValueError):
    """The text is not YAML: `problem`, at `line` and `column` (from 0, within the chunk)."""

    def __init__(self, problem: str, line: int, column: int) -> None:
        super().__init__(problem)
        self.problem = problem
        self.line = line
        self.column = column


@dataclass(frozen=True, slots=True)
class Chunk:
    """The text of one document, its `---` line included; `first_line` counts from 0."""

    text: str
    first_line: int


@dataclass(frozen=True, slots=True)
class Field:
    """One `key: value` of a mapping."""

    key: yaml.ScalarNode
    value: yaml.Node

    @property
    def name(self) -> str:
        """The key's text."""
        return str(self.key.value)


def split(text: str) -> list[Chunk]:
    """Cut a stream before every `---` line; joined again, the chunks are the text.

    A chunk that holds only directives (`%YAML`) stays with the document it speaks for.
    """
    cuts = [0, *(found.start() for found in _MARKER.finditer(text) if found.start()), len(text)]
    chunks: list[Chunk] = []
    line = 0
    held = ""
    for start, end in itertools.pairwise(cuts):
        held += text[start:end]
        if _is_directives(held) and end < len(text):
            continue
        chunks.append(Chunk(held, line))
        line += held.count("\n")
        held = ""
    return chunks


def compose(text: str) -> list[yaml.Node]:
    """Return the root nodes of a chunk.

    Raises: BrokenYaml: also for what a parser chokes on, such as nesting without end.
    """
    try:
        return [node for node in yaml.compose_all(text, Loader=yaml.SafeLoader) if node is not None]
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        problem = exc.problem or exc.context or "not YAML"
        raise BrokenYaml(problem, mark.line if mark else 0, mark.column if mark else 0) from None
    except yaml.YAMLError as exc:
        at = getattr(exc, "position", 0)
        before = text[: at if isinstance(at, int) else 0]
        problem = str(getattr(exc, "reason", "not YAML"))
        line_start = before.rfind("\n") + 1
        raise BrokenYaml(problem, before.count("\n"), len(before) - line_start) from None
    except RecursionError:
        raise BrokenYaml("nested too deeply", 0, 0) from None
    except (ValueError, OverflowError) as exc:  # an escape beyond Unicode, such as "\UFFFFFFFF"
        raise BrokenYaml(f"not YAML: {exc}", 0, 0) from None


def manifests(root: yaml.Node) -> Iterator[yaml.Node]:
    """Yield the objects of a document: itself, or the items of a `kind: List`."""
    kind = find(root, "kind")
    items = find(root, "items")
    if kind is not None and text_of(kind.value) == "List" and items is not None:
        if isinstance(items.value, yaml.SequenceNode):
            yield from items.value.value
    else:
        yield root


def fields(node: yaml.Node | None) -> list[Field]:
    """Return the fields of a mapping whose keys are scalars; of anything else, none."""
    if not isinstance(node, yaml.MappingNode):
        return []
    return [Field(key, value) for key, value in node.value if isinstance(key, yaml.ScalarNode)]


def find(node: yaml.Node | None, *path: str) -> Field | None:
    """Return the field at `path`, the first where a key is repeated; None where there is none."""
    found: Field | None = None
    for name in path:
        found = next((field for field in fields(node) if field.name == name), None)
        if found is None:
            return None
        node = found.value
    return found


def find_text(node: yaml.Node, *path: str) -> str | None:
    """Return the text of the scalar at `path`, None where it is absent, null or no scalar."""
    found = find(node, *path)
    return None if found is None else text_of(found.value)


def text_of(node: yaml.Node) -> str | None:
    """Return a scalar's text; None for null and for anything else."""
    if isinstance(node, yaml.ScalarNode) and node.tag != _NULL:
        return str(node.value)
    return None


def is_null(node: yaml.Node) -> bool:
    """Whether the value is null, written out or left out."""
    return isinstance(node, yaml.ScalarNode) and node.tag == _NULL


def is_string(node: yaml.Node) -> bool:
    """Whether the value is a scalar that Kubernetes would read as a string."""
    return isinstance(node, yaml.ScalarNode) and node.tag == _STRING


def has_merge(node: yaml.Node) -> bool:
    """Whether a mapping takes fields from elsewhere (`<<`), so that none can be called missing."""
    return any(field.name == "<<" for field in fields(node))


def scalars(nodes: list[yaml.Node]) -> list[str] | None:
    """Return every scalar's tag and text below `nodes`, but for nulls that are left out.

    None where a node is used twice (an alias): such text is not for moving about.
    """
    seen: set[int] = set()
    found: list[str] = []
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            return None
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            waiting.extend(part for pair in node.value for part in pair)
        elif isinstance(node, yaml.SequenceNode):
            waiting.extend(node.value)
        elif node.tag != _NULL or node.value:
            found.append(f"{node.tag} {node.value}")
    return found


def _is_directives(text: str) -> bool:
    lines = [line for line in text.splitlines() if line.strip()]
    return any(line.startswith("%") for line in lines) and all(
        line.startswith(("%", "#")) for line in lines
    )
