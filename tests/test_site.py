"""The site of `make docs`: it builds without a warning, has every page and shows every public name."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import swaa

ROOT = Path(__file__).parent.parent
PAGES = sorted(path.stem for path in (ROOT / "docs").glob("*.md"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; a warning is an error, as in `make docs`."""
    missing = [name for name in ("mkdocs", "material", "mkdocstrings") if importlib.util.find_spec(name) is None]
    assert not missing, f"the site needs {missing}: pip install -e '.[dev]' again (the extra `docs`)"
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


def content(page):
    """What a reader sees of a page, without its frame."""
    found = re.search(r"<article.*?</article>", page.read_text(), re.DOTALL)
    return found[0]


def test_every_page_has_a_place(site):
    home = (site / "index.html").read_text()
    navigation = set(re.findall(r'<a href="([\w./-]*)" class="md-nav__link', home))
    assert navigation >= {f"{name}/" for name in PAGES if name != "index"}


def test_links_of_the_site_lead_to_files(site):
    missing = []
    for page in site.rglob("*.html"):
        if page.name == "404.html":  # its links are absolute, for any depth
            continue
        for target in re.findall(r'(?:href|src)="([^"#:]+)[^":]*"', content(page)):
            place = page.parent / target
            if not (place / "index.html" if place.is_dir() else place).exists():
                missing.append(f"{page.relative_to(site)}: {target}")
    assert missing == []


def test_public_names_are_in_the_reference(site):
    shown = set(re.findall(r'id="swaa\.[\w.]*?(\w+)"', (site / "api" / "index.html").read_text()))
    assert set(swaa.__all__) - shown == set()


def test_a_page_loads_nothing_from_elsewhere(site):
    tag = re.compile(r"<(?:script|img|iframe|link)\b[^>]*>")
    away = re.compile(r"""(?:src|href)=["'](?:https?:)?//""")
    tags = {found for page in site.rglob("*.html") for found in tag.findall(page.read_text())}
    assert len(tags) > 10
    assert [found for found in tags if away.search(found)] == []
