"""Every command line in README and docs parses against the real command table, and names files that are there."""

import os
import re
import shlex
import subprocess
import sys

import pytest
import typer
from typer.main import get_command

import cli
from tests.docs.pages import PAGES, ROOT, code_blocks

CALL = re.compile(r"(?:sak-cli|-m cli)(?=\s)(.*)")
TABLE = get_command(cli.app)


def command_lines(text: str) -> list[str]:
    """What follows `sak-cli` or `-m cli` in the code of a page, lines joined where a backslash ends them."""
    joined = [re.sub(r"\\\n\s*", " ", block) for block in code_blocks(text)]
    inline = [each for each in re.findall(r"`([^`\n]+)`", text) if each.startswith("sak-cli ") and "--" in each]
    lines = [line for block in joined for line in block.splitlines()] + inline
    found = [CALL.search(line.partition(" # ")[0].removeprefix("$ ")) for line in lines]
    return [match[1].removesuffix(" &").strip() for match in found if match]


LINES = sorted(
    {(path.relative_to(ROOT).as_posix(), line) for path in PAGES for line in command_lines(path.read_text())}
)


def leaves(group, names=()):
    """(words, command) of every command there is."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from leaves(command, (*names, name))
        else:
            yield (*names, name), command


COMMANDS = dict(leaves(TABLE))


def parse(line: str) -> None:
    """Parse without running; click's own error where an option or argument is unknown, missing or of another type."""
    words = shlex.split(line)
    words = ["7" if word == "N" else word for word in words if word != "--debug"]
    for length in (2, 1):
        if tuple(words[:length]) in COMMANDS:
            command = COMMANDS[tuple(words[:length])]
            command.make_context(" ".join(words[:length]), words[length:], resilient_parsing=False)
            return
    raise AssertionError(f"no such command: {line}")


def is_elliptic(line: str) -> bool:
    """`sak-cli extract` in prose, `...`, or a line that only shows help."""
    return "..." in line or line.startswith("--") or line.endswith("--help")


@pytest.mark.parametrize(("where", "line"), [pair for pair in LINES if not is_elliptic(pair[1])])
def test_a_command_line_parses(where, line):
    try:
        parse(line)
    except typer.Exit:
        pass
    except cli._UsageError as error:
        raise AssertionError(f"{where}: sak-cli {line}: {error.format_message()}") from error


def test_there_are_many_and_most_commands_are_shown():
    shown = {" ".join(words) for words in COMMANDS for _, line in LINES if line.startswith(" ".join(words))}
    assert len(LINES) > 50
    assert len(shown) >= len(COMMANDS) - 2, {" ".join(words) for words in COMMANDS} - shown


@pytest.mark.parametrize(("where", "line"), LINES)
def test_specs_and_recipes_that_are_named_are_there(where, line):
    for name in re.findall(r"\b(?:cache_specs|recipes)/[\w/.]+\.yaml", line):
        assert (ROOT / name).is_file(), f"{where}: {name}"


@pytest.mark.parametrize("words", COMMANDS)
def test_help_has_an_example_that_parses(words):
    text = COMMANDS[words].help or ""
    (example,) = re.findall(r"Example: \[cyan\](.*?)\[/cyan\]", " ".join(text.split())) or [None]
    assert example is not None, f"sak-cli {' '.join(words)} --help shows no example"
    assert example.startswith(f"sak-cli {' '.join(words)}")
    parse(example.removeprefix("sak-cli "))


def test_make_targets_that_are_named_are_there():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for path in PAGES:
        named = {
            word for block in code_blocks(path.read_text()) for word in re.findall(r"^make ([a-z-]+)", block, re.M)
        }
        assert named <= targets, f"{path.name}: {named - targets}"


def test_links_between_pages_lead_somewhere():
    for path in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_is_made_without_torch(shell):
    code = "import sys, cli\ntry: cli.main([])\nfinally: sys.exit(3 if 'torch' in sys.modules else 0)"
    environment = {**os.environ, "_SAK_CLI_COMPLETE": f"source_{shell}"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "_SAK_CLI_COMPLETE" in done.stdout


def test_pages_name_no_place_of_their_makers():
    places = ("/".join(("", "work", "")), "../shared", "/tmp/")
    for path in PAGES:
        assert [place for place in places if place in path.read_text()] == [], path
