"""The documentation: its code runs, its commands can be typed, its tables and pictures are what their code makes."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch
import yaml
from matplotlib.image import imread

from commands import FENCE, commands, mentions, problem, unknown
from families import tiny_model
from swaa.recipes import Recipe, recipe_names
from swaa.report.plots import KINDS, REASONS

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")), *DOCS]
PAGES += [ROOT / "examples" / "README.md", ROOT / "benchmarks" / "README.md"]
# Rows of tables that a page's code prints.
ROWS = {"limits": 11, "memory": 9, "recipes": 9, "reproduction": 34}
LINK = re.compile(r"""\]\(\s*<?([^)\s>]+)|(?:src|href)=["']([^"']+)""")


def name(path):
    return str(path.relative_to(ROOT))


def blocks(page, language):
    return [block for block in FENCE.finditer(page.read_text()) if block[1] == language]


def run(page, **given):
    """Run the Python blocks of a page in order in one namespace; errors name the page's own lines."""
    text, namespace = page.read_text(), dict(given)
    for block in blocks(page, "python"):
        lines_before = text.count("\n", 0, block.start(2))
        exec(compile("\n" * lines_before + block[2], page, "exec"), namespace)
    return namespace


def relative_links(text):
    """The link targets inside the repository, anchors cut off."""
    targets = [a or b for a, b in LINK.findall(FENCE.sub("", text))]
    targets = [target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:", target)]
    return [target for target in targets if target]


@pytest.fixture(autouse=True)
def modes():
    """What a page switches is switched back."""
    with torch.enable_grad():
        yield


@pytest.mark.parametrize("page", [page for page in DOCS if blocks(page, "python")], ids=name)
def test_code_runs_and_prints_the_tables_of_the_page(page, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    run(page)
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(printed) == ROWS.get(page.stem, 0)
    assert [line for line in printed if line not in page.read_text().splitlines()] == []


def test_the_table_of_the_readme_is_that_of_the_reproduction():
    lines = (ROOT / "README.md").read_text().partition("## What it does to a real model")[2].splitlines()
    rows = [line for line in lines[: lines.index("## How fast")] if line.startswith("| ") and line.count("|") == 11]
    assert len(rows) == 16  # with its head
    page = (ROOT / "docs" / "reproduction.md").read_text().splitlines()
    assert [row for row in rows if row not in page] == []


def test_the_code_of_the_readme_runs(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    inputs = {"input_ids": torch.randint(3, 90, (1, 40)), "max_new_tokens": 4}
    model = run(ROOT / "README.md", name=tmp_path, inputs=inputs)["model"]
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_is_of_a_kind_that_is_checked(page):
    text = page.read_text()
    assert {block[1] for block in FENCE.finditer(text)} <= {"python", "sh", "yaml", "text"}
    assert "```" not in FENCE.sub("", text)
    if page not in DOCS:
        assert page.name == "README.md" or not blocks(page, "python")
    for block in blocks(page, "yaml"):
        assert Recipe.from_dict("documented", yaml.safe_load(block[2]))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_can_be_typed(page):
    text = page.read_text()
    assert [f"{' '.join(words)}: {wrong}" for words in commands(text) if (wrong := problem(words))] == []
    assert [f"{' '.join(words)}: {wrong}" for words in mentions(text) if (wrong := unknown(words))] == []


def test_commands_that_cannot_be_typed_are_noticed():
    text = (
        "Say `swaa inspect --alll` or\n`swaa\ninspct`, `swaa bench prefill --batches`, `swaa lm_eval --any`.\n\n"
        "    swaa compare \\\n        --lenght 2k && swaa compare -r naive,odd  # and\n    python no/such.py --x\n\n"
        "```sh\npip install 'swaa[demo,dmo]'\nmake VENV=x tset\naccelerate launch -m swaa.cli eval --tasks rulr\n"
        "swaa compare -r naive --length 2k\n```\n```python\nswaa = 1\n```\n"
    )
    assert [unknown(words) for words in mentions(text)] == [
        "no option ['--alll']",
        "no command 'inspct'",
        None,
        None,
    ]
    found = {" ".join(words): words for words in commands(text)}
    assert "No such option: --lenght" in problem(found["swaa compare --lenght 2k"])
    with pytest.raises(ValueError, match="unknown recipe 'odd'"):
        problem(found["swaa compare -r naive,odd"])
    with pytest.raises(ValueError, match="unknown task 'rulr'"):
        problem(found["accelerate launch -m swaa.cli eval --tasks rulr"])
    assert problem(found["python no/such.py --x"]) == "no file ['no/such.py']"
    assert problem(found["pip install swaa[demo,dmo]"]) == "no extra ['dmo']"
    assert problem(found["make VENV=x tset"]) == "no target ['tset']"
    assert problem(found["swaa compare -r naive --length 2k"]) is None
    assert len(found) == 7


def test_examples_of_extensions_are_short():
    lengths = [block[2].count("\n") for block in blocks(ROOT / "docs" / "extending.md", "python")]
    assert len(lengths) >= 4
    assert max(lengths) < 40


def test_every_shipped_recipe_is_explained():
    purposes = (ROOT / "docs" / "recipes.md").read_text().split("## By purpose")[1].split("\n## ")[0]
    assert set(recipe_names()) - set(re.findall(r"`([\w-]+)`", purposes)) == set()


def test_the_pictures_are_those_of_the_semantics(tmp_path):
    images = ROOT / "docs" / "images"
    load_script(images / "make.py").main(tmp_path)
    assert [path.name for path in sorted(images.glob("*.png"))] == [path.name for path in sorted(tmp_path.iterdir())]
    for path in images.glob("*.png"):
        old, new = areas(path), areas(tmp_path / path.name)
        assert old == pytest.approx(new, rel=0.01), path.name


def areas(path):
    """Pixels of each shade that has a meaning; letters, which another font draws differently, have none of them."""
    pixels = (imread(path)[..., :3] * 255).round().astype(int)
    shades = [shade for shade in {*REASONS.values(), *KINDS.values()} if shade != "#FFFFFF"]
    counts = {s: int((pixels == [int(s[i : i + 2], 16) for i in (1, 3, 5)]).all(-1).sum()) for s in shades}
    assert sum(count > 1000 for count in counts.values()) >= 4
    return counts


def load_script(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files(page):
    missing = [target for target in relative_links(page.read_text()) if not (page.parent / target).exists()]
    assert missing == []


def test_links_are_found():
    text = (
        '[a](a.md) ![b](b/b.png "title") [c](<c.md>) [d](../d.md#part) <img src="e.png"> [[f](f.md)](g.md)\n'
        "[web](https://example.org/x.md) [mail](mailto:x@y) [here](#top)\n```python\nx[0](h.md)\n```\n"
    )
    assert relative_links(text) == ["a.md", "b/b.png", "c.md", "../d.md", "e.png", "f.md", "g.md"]
