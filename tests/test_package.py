"""What is released: the wheel holds the source tree with all its data, and the files beside it name the version."""

import importlib.util
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import swaa

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of `python -m build`: made from the source distribution, so that one is complete too."""
    missing = [name for name in ("build", "hatchling") if importlib.util.find_spec(name) is None]
    assert not missing, f"a wheel needs {missing}: pip install -e '.[dev]' again"
    folder = tmp_path_factory.mktemp("dist")
    # Without isolation nothing is downloaded: hatchling is here already.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_the_wheel_is_the_source_tree(wheel):
    files = {path for path in (SOURCE / "swaa").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    source = {str(path.relative_to(SOURCE)): path.read_bytes() for path in files}
    kept = {name: wheel.read(name) for name in wheel.namelist() if ".dist-info/" not in name}
    assert sorted(kept) == sorted(source)
    assert [name for name in kept if kept[name] != source[name]] == []
    data = {Path(name).suffix for name in kept} - {".py"}
    assert data >= {".yaml", ".gz", ".jinja", ".j2", ".css", ".js", ".typed"}


def test_the_wheel_says_what_it_is(wheel):
    (folder,) = {name.split("/")[0] for name in wheel.namelist()} - {"swaa"}
    metadata = wheel.read(f"{folder}/METADATA").decode()
    assert f"\nName: swaa\nVersion: {swaa.__version__}\n" in metadata
    assert "swaa = swaa.cli:main" in wheel.read(f"{folder}/entry_points.txt").decode()
    assert {Path(name).name for name in wheel.namelist() if "/licenses/" in name} == {"LICENSE", "LICENSE.md"}


def test_the_wheel_runs_without_the_checkout(wheel, tmp_path):
    wheel.extractall(tmp_path)
    code = (
        "import swaa, swaa.cli, swaa.prose, swaa.recipes as r; assert len(swaa.prose.prose('test')) > 500_000; "
        "assert r.load_recipe('naive').config.window == 2048; print(swaa.__file__)"
    )
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert Path(found.stdout.strip()).is_relative_to(tmp_path)


def test_the_change_log_has_the_version():
    versions = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == swaa.__version__
    assert versions == sorted(versions, key=lambda text: [int(part) for part in text.split(".")], reverse=True)


def test_the_citation():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == swaa.__version__
    assert citation["license"] == "Apache-2.0"
    (paper,) = citation["references"]
    assert paper["identifiers"] == [{"type": "other", "value": "arXiv:2512.10411"}]
    assert all(author["family-names"] for author in paper["authors"])
