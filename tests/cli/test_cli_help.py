"""The help of every command ends with examples that its own parser takes."""

import argparse
import re
import shlex

import pytest

from autolora.cli import parser


def parsers(parent, name=()):
    """The parsers of all commands, by their words."""
    yield name, parent
    for action in parent._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, child in action.choices.items():
                yield from parsers(child, (*name, word))


COMMANDS = dict(parsers(parser._parser()))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_examples_of_a_command(words):
    text = COMMANDS[words].format_help()
    examples = re.findall(rf"^  ({' '.join(('autolora', *words))}.*)$", text, flags=re.M)
    assert examples
    for example in examples:
        parser.parse(shlex.split(example)[1:])
