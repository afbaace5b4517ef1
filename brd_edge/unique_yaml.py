"""YAML that says nothing twice: the safe loader would take the last of two equal keys, and say nothing."""

from __future__ import annotations

from typing import Any

import yaml

__all__ = ["parse_yaml"]

_MERGE = "tag:yaml.org,2002:merge"


class _UniqueKeyLoader(yaml.SafeLoader):
    """The safe loader, made to refuse equal keys.

    A merge key (`<<: *base`) is none of a mapping's own: what it brings, the mapping may say otherwise.
    """

    def __init__(self, stream: str) -> None:
        """Read from a text."""
        super().__init__(stream)
        self._checked: set[yaml.MappingNode] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Replace merge keys by what they bring, in place, once it is clear that no key stands twice."""
        # a mapping that another one merges comes again, with what it has itself merged among its keys
        if node not in self._checked:
            self._checked.add(node)
            keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != _MERGE]
            twice = sorted({str(key) for key in keys if keys.count(key) > 1})
            if twice:
                raise yaml.MarkedYAMLError(problem=f"the key {twice[0]} stands twice", problem_mark=node.start_mark)
        super().flatten_mapping(node)


def parse_yaml(text: str) -> Any:
    """Return what a YAML text holds: plain values, lists and mappings.

    Raises:
        yaml.YAMLError: It is not YAML, or a mapping has a key twice.
        ValueError: It holds a number or a date that there is not.
        RecursionError: It is nested too deeply.

    Example:
        >>> parse_yaml("names: [road, kerb]")
        {'names': ['road', 'kerb']}
    """
    return _UniqueKeyLoader(text).get_single_data()
