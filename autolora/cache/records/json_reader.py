"""A JSON text walked through value by value, so that the objects of only one exist at a time.

Parsed as a whole, a hostile text becomes objects of thirty times its size and more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from autolora.cache.records.checks import entry

_MOST_ENTRIES = 10**6  # no file that may be read has room for so many records
_MOST_NAMES = 10**5  # nor does any need so many environments
_SPACE = re.compile(r"[ \t\n\r]*+")


class JsonReader:
    """A place in a text, which every method moves on.

    All raise ``ValueError`` where the text is not what is asked for.

    Args:
        text: JSON.
        at: where to begin.
    """

    def __init__(self, text: str, at: int = 0) -> None:
        self.text, self.at = text, at

    def peek(self) -> str:
        """The next character that is no space, ``""`` at the end; it stays the next."""
        space = _SPACE.match(self.text, self.at)
        assert space is not None  # it matches no space at all, too
        self.at = space.end()
        return self.text[self.at : self.at + 1]

    def value(self) -> Any:
        """The next value, of at most :data:`~autolora.cache.records.checks.LONGEST` characters."""
        self.peek()
        value, self.at = entry(self.text, self.at)
        return value

    def skip(self) -> None:
        """Passes over the next value; of a list or an object, over one entry after the other."""
        kind = self.peek()
        if kind == "[":
            for _ in self.items():
                pass
        elif kind == "{":
            for _ in self.members():
                self.value()
        else:
            self.value()

    def items(self) -> Iterator[Any]:
        """The values of the list that is next."""
        for _ in self._each("[", "]"):
            yield self.value()

    def members(self) -> Iterator[str]:
        """The names of the object that is next; the caller takes the value after each."""
        names: set[str] = set()
        for _ in self._each("{", "}"):
            name = self.value()
            if not isinstance(name, str):
                raise ValueError(f"a member's name must be text (character {self.at})")
            if len(names) == _MOST_NAMES:
                raise ValueError(f"an object has more than {_MOST_NAMES:,} members")
            if name in names:
                raise ValueError("an object has a member twice")
            names.add(name)
            self._take(":")
            yield name

    def _each(self, opening: str, closing: str) -> Iterator[None]:
        self._take(opening)
        if self.peek() == closing:
            self.at += 1
            return
        for _ in range(_MOST_ENTRIES):
            yield
            if self._take("," + closing) == closing:
                return
        raise ValueError(f"more than {_MOST_ENTRIES:,} entries")

    def _take(self, expected: str) -> str:
        """The next character, one of those expected."""
        found = self.peek()
        if not found or found not in expected:
            raise ValueError(f"{' or '.join(expected)} is missing at character {self.at}")
        self.at += 1
        return found
