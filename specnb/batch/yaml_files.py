"""YAML that a person has written: nothing in it is lost, and nothing in it is run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from specnb.arguments import shown
from specnb.files import text_lines

OCTAL = re.compile(r"[-+]?0[0-7_]+")
MOST_NODES = 1_000_000  # values, aliases written out


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping; YAML forbids it, PyYAML takes the last."""

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)  # as written: `<<` is merged in later
        seen: dict[Any, yaml.Node] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            value = self.construct_object(key)
            if value in seen:
                line = seen[value].start_mark.line + 1
                raise yaml.composer.ComposerError(
                    None,
                    None,
                    f"the key {shown(value)} stands in line {line} already; leave one out",
                    key.start_mark,
                )
            seen[value] = key
        return node

    def get_single_node(self):
        node = super().get_single_node()
        if node is not None and _size(node, {}) > MOST_NODES:
            raise yaml.composer.ComposerError(
                None, None, "aliases repeat too much; write less", node.start_mark
            )
        return node


def _number(loader: _Loader, node: yaml.ScalarNode) -> int | float:
    """A number; those that YAML 1.1 reads in its own way, as 1:30 for 90, are refused."""
    kind = node.tag.rpartition(":")[2]
    value = getattr(loader, f"construct_yaml_{kind}")(node)
    if ":" in node.value or OCTAL.fullmatch(node.value):
        raise yaml.constructor.ConstructorError(
            None,
            None,
            f"{node.value} would be read as {value}; write that, or quotes around a text",
            node.start_mark,
        )
    return value


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _number)


def _size(node: yaml.Node, known: dict[int, float]) -> float:
    """How many values a node stands for, aliases written out; infinite where it holds itself."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = float("inf")
        parts = [part for entry in node.value for part in _parts(entry)]
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def _parts(entry: Any) -> tuple[yaml.Node, ...]:
    return entry if isinstance(entry, tuple) else (entry,)


def read(path: Path) -> Any:
    """What a YAML file holds: plain values only. ValueError in one sentence that names the file,
    and the line where it is known."""
    lines = text_lines(path)
    try:
        return yaml.load("\n".join(lines), Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        why = f"{line}{error.problem}"
    except yaml.reader.ReaderError as error:
        why = f"character {error.position + 1}: {error.reason}"
    except RecursionError:
        why = "brackets within brackets without an end"
    except ValueError as error:  # a day that is in no calendar, a number without an end
        why = str(error)
    why = " ".join(why.split())
    raise ValueError(f"{path.name}: this is no YAML that is safe to read: {why[:160]}")
