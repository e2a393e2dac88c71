"""What messages advise exists: every option and every command that a text of the package names."""

from __future__ import annotations

import argparse
import ast
import re

from vargface import cli

# other programs' options; a page's style
FOREIGN = re.compile(r"pip install|tensorboard|^--query-gpu|^--format=csv|:root \{")


def parsers(parser: argparse.ArgumentParser, words: tuple[str, ...] = ()):
    yield words, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, of_command in action.choices.items():
                yield from parsers(of_command, (*words, name))


def texts(root):
    for file in [*(root / "src").rglob("*.py"), *(root / "eval").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and not FOREIGN.search(node.value):
                yield f"{file.name}:{node.lineno}", node.value


def test_options_and_commands_that_are_named_exist(root):
    commands = dict(parsers(cli._parser()))
    options = {option for parser in commands.values() for action in parser._actions for option in action.option_strings}
    wrong, seen = [], set()
    for where, text in texts(root):
        for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text):
            seen.add(option)
            wrong += [f"{where}: {option}"] * (option not in options)
        for first, second in re.findall(r"\bvargface ([a-z]+[a-z0-9-]*)(?: ([a-z]+[a-z0-9-]*))?", text):
            tools = {words[1] for words in commands if len(words) == 2 and words[0] == first}
            seen.add(first)
            if (first,) not in commands or (tools and second and second not in tools):
                wrong.append(f"{where}: vargface {first} {second}")
    assert not wrong
    assert {"--skip-bad", "--root", "--pairs", "--decode", "rec"} <= seen
