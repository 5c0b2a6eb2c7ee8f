"""What the documentation tells a reader to type, and whether it can be typed: nothing is run."""

import re
import shlex
import tomllib
from pathlib import Path

import typer
from click.testing import CliRunner

from swaa.cli import app
from swaa.recipes import load_recipes
from swaa.tasks import GROUPS, TASKS

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(swaa\s[^`]+)`")
PROGRAMS = ("swaa", "make", "python", "pip", "accelerate", "torchrun")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
TARGETS = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)


def commands(text):
    """The commands of a page's blocks, fenced (`sh`) or indented: a list of words each."""
    blocks = [block[2] for block in FENCE.finditer(text) if block[1] == "sh"]
    indented = [line[4:] for line in FENCE.sub("", text).replace("\\\n", " ").splitlines() if line.startswith("    ")]
    lines = "\n".join([*blocks, *indented]).replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        if line.strip().startswith(PROGRAMS):
            words = shlex.split(line, comments=True)
            while "&&" in words:
                found.append(words[: words.index("&&")])
                words = words[words.index("&&") + 1 :]
            found.append(words)
    return found


def mentions(text):
    """The beginnings of commands in running text, `swaa` left out: a list of words each."""
    return [shlex.split(inline)[1:] for inline in INLINE.findall(FENCE.sub("", text))]


def problem(words):
    """Say what is wrong with a command; None if it can be typed."""
    program = Path(words[0]).name
    if "swaa.cli" in words:
        program, words = "swaa", words[words.index("swaa.cli") :]
    if program == "swaa":
        return _parse(words[1:])
    if program == "make":
        wrong = [word for word in words[1:] if "=" not in word and word not in TARGETS]
        return f"no target {wrong}" if wrong else None
    if program == "pip":
        named = [extra for word in words for match in re.findall(r"\[(.+)\]", word) for extra in match.split(",")]
        wrong = [extra for extra in named if extra not in EXTRAS]
        return f"no extra {wrong}" if wrong else None
    scripts = [word for word in words[1:] if word.endswith(".py")]
    wrong = [script for script in scripts if not (ROOT / script).exists()]
    return f"no file {wrong}" if wrong else None


def unknown(words):
    """Say what a mention names that does not exist: a subcommand or an option."""
    command = typer.main.get_command(app)
    words = list(words)
    while words and hasattr(command, "commands") and not words[0].startswith("-") and words[0] != "COMMAND":
        if words[0] not in command.commands:
            return f"no command {words[0]!r}"
        command = command.commands[words.pop(0)]
    known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help", "-h"}
    wrong = [word for word in words if re.match(r"--?[a-z]", word) and word.split("=")[0] not in known]
    if wrong and not command.context_settings.get("ignore_unknown_options"):
        return f"no option {wrong}"
    return None


def _parse(words):
    """Let the command line read the words, and check the names of recipes and tasks in them."""
    command, given = typer.main.get_command(app), {}
    _silence(command, given)
    result = CliRunner().invoke(command, words)
    if result.exit_code:
        return result.output
    recipes = f"{given.get('recipes') or ''},{given.get('recipe') or ''}".split(",")
    for name in recipes:
        if name and not Path(name).suffix:
            load_recipes(name)
    for name in (given.get("tasks") or "").split(","):
        if name and name not in GROUPS:
            TASKS[name]
    return None


def _silence(command, given):
    """Let a command and all below it only note what they were given."""
    if not hasattr(command, "commands"):
        command.callback = lambda **values: given.update(values)
    for below in getattr(command, "commands", {}).values():
        _silence(below, given)
