"""YAML that means one thing and stays as small as it looks: run files, and the values of `--set`.

YAML keeps the last of two equal keys without a word, and its aliases (`*a`) and merge keys (`<<`) let ten lines mean
gigabytes. Neither has a use in a run file, so both are refused. YAML 1.1 takes 1:30:00 for 5400, 0100 for 64 and
2020-01-01 for a date; here they are texts, as in YAML 1.2.
"""

import re
from collections.abc import Hashable
from typing import Any

import yaml

from influence.errors import ConfigError

MAX_CHARACTERS = 1 << 20
MAX_DEPTH = 32
"""Mappings and lists within one another; a run file has fewer than ten."""
MERGE = "tag:yaml.org,2002:merge"
Lines = dict[tuple[Any, ...], int]


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == MERGE:
                raise _refusal("merge keys (<<) are not read: write the settings out", key_node)
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise _refusal(f"the key {key!r} is given twice", key_node)
            seen.add(key)
        return super().construct_mapping(node, deep)


INT, FLOAT, TIMESTAMP = (f"tag:yaml.org,2002:{name}" for name in ("int", "float", "timestamp"))
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag not in (INT, FLOAT, TIMESTAMP)]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(INT, re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    FLOAT,
    re.compile(
        r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def parse_yaml(source: str, origin: str) -> tuple[Any, Lines]:
    """Return what a YAML document says, and the line of each of its keys.

    Args:
        source: The document.
        origin: What messages name: a file, or `--set`.

    Raises:
        ConfigError: It isn't YAML, has more than 2**20 characters, nests deeper than 32 levels, names a key twice,
            or has an alias or a merge key.
    """
    if len(source) > MAX_CHARACTERS:
        raise ConfigError(f"{origin} has {len(source):,} characters; a run file has at most {MAX_CHARACTERS:,}.")
    try:
        _check_events(source)
        loader = _Loader(source)
        try:
            node = loader.get_single_node()
            return (None, {}) if node is None else (loader.construct_document(node), dict(_key_lines(node, ())))
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{origin}{line}: not valid YAML: {error.problem or error.context}.") from None
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError) as error:
        # The others are a value's that isn't what its tag or its look promises: !!int x, 2020-13-01.
        raise ConfigError(f"{origin}: not valid YAML: {error}") from None


def _check_events(source: str) -> None:
    """Look at the document's shape before anything is made of it, which is done recursively."""
    depth = 0
    for event in yaml.parse(source, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise _refusal(f"the alias *{event.anchor} is not supported: write its content out", event)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise _refusal(f"more than {MAX_DEPTH} levels within one another", event)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _key_lines(node: Any, above: tuple[Any, ...]) -> list[tuple[tuple[Any, ...], int]]:
    lines = []
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            where = (*above, key.value if isinstance(key.value, Hashable) else None)
            lines += [(where, key.start_mark.line + 1), *_key_lines(value, where)]
    return lines


def _refusal(problem: str, where: Any) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, where.start_mark)
