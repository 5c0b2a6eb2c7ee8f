"""The documentation: its code runs, its numbers are what its commands print, and its links lead somewhere."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
LINKED = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "examples" / "README.md", *PAGES]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"""\]\(\s*<?([^)\s>]+)|(?:src|href)=["']([^"']+)""")


def name(path):
    return str(path.relative_to(ROOT))


def run(page):
    """Run the Python blocks of a page in order in one namespace; errors name the page's own lines."""
    text, namespace, count = page.read_text(), {}, 0
    for block in BLOCK.finditer(text):
        if block[1] == "python":
            lines_before = text.count("\n", 0, block.start(2))
            exec(compile("\n" * lines_before + block[2], page, "exec"), namespace)
            count += 1
    return count


def relative_links(text):
    """The link targets inside the repository, anchors cut off."""
    targets = [a or b for a, b in LINK.findall(BLOCK.sub("", text))]
    targets = [target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:", target)]
    return [target for target in targets if target]


@pytest.fixture(autouse=True)
def modes():
    """What a page switches is switched back."""
    with torch.enable_grad():
        yield


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_code_runs(page):
    assert run(page) > 0


def test_the_memory_table_is_what_its_command_prints(capsys):
    page = ROOT / "docs" / "memory.md"
    run(page)
    printed = capsys.readouterr().out.splitlines()
    table = page.read_text().split("|---|---|---|---|\n")[1].split("\n\n")[0].splitlines()
    assert len(printed) == 9
    assert printed == table


@pytest.mark.parametrize("page", LINKED, ids=name)
def test_links_lead_to_files(page):
    missing = [target for target in relative_links(page.read_text()) if not (page.parent / target).exists()]
    assert missing == []


def test_links_are_found():
    text = (
        '[a](a.md) ![b](b/b.png "title") [c](<c.md>) [d](../d.md#part) <img src="e.png"> [[f](f.md)](g.md)\n'
        "[web](https://example.org/x.md) [mail](mailto:x@y) [here](#top)\n```python\nx[0](h.md)\n```\n"
    )
    assert relative_links(text) == ["a.md", "b/b.png", "c.md", "../d.md", "e.png", "f.md", "g.md"]
