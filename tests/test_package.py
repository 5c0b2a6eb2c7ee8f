"""What is released: the wheel holds the source tree with all its data, and the files beside it name the version."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
import venv
import zipfile
from email.parser import BytesParser
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import swaa
from commands import EXTRAS
from swaa.models import default_model_path

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
    assert f"\nName: swaa\nVersion: {swaa.__version__}\n" in wheel.read(f"{folder}/METADATA").decode()
    assert "swaa = swaa.cli:main" in wheel.read(f"{folder}/entry_points.txt").decode()
    assert {Path(name).name for name in wheel.namelist() if "/licenses/" in name} == {"LICENSE", "LICENSE.md"}


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The scripts' folder of a new environment: the wheel, what it requires, what that requires, and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in needed_by(required(wheel)):
        for file in metadata.distribution(name).files:
            top = site / file.parts[0]
            if file.parts[0] != ".." and not top.exists():
                top.symlink_to(metadata.distribution(name).locate_file(file.parts[0]))
    # Without an index, pip installs only if all that is required is there, in versions that are allowed.
    command = [sys.executable, "-m", "pip", "--python", str(folder), "install", "--no-index", "-q", wheel.filename]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "bin"


def required(wheel, extras=("",)):
    """The requirements of the wheel's metadata, those of extras too."""
    (file,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return list(requirements(BytesParser().parsebytes(wheel.read(file)).get_all("Requires-Dist"), extras))


def requirements(lines, extras=("",)):
    for line in lines or ():
        requirement = Requirement(line)
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            yield requirement


def needed_by(wanted):
    """Names of all distributions that requirements need; those that are not installed are left out."""
    found, todo = set(), [(requirement.name, requirement.extras) for requirement in wanted]
    while todo:
        name, extras = todo.pop()
        if name == "swaa" or canonicalize_name(name) in found:
            continue
        try:
            lines = metadata.requires(name)
        except metadata.PackageNotFoundError:
            continue
        found.add(canonicalize_name(name))
        todo += [(more.name, more.extras) for more in requirements(lines, ("", *extras))]
    return found


def test_all_that_is_imported_is_required(wheel):
    found = set()
    for name in wheel.namelist():
        for node in ast.walk(ast.parse(wheel.read(name))) if name.endswith(".py") else ():
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            found |= {name.split(".")[0] for name in names}
    # Triton comes with torch for GPUs; FlashAttention has pre-releases only. Backends do without either.
    found -= {*sys.stdlib_module_names, "swaa", "triton", "flash_attn"}
    wanted = required(wheel, ["", *set(EXTRAS) - {"dev", "docs"}])
    known = needed_by(wanted) | {canonicalize_name(requirement.name) for requirement in wanted}
    sources = metadata.packages_distributions()
    assert {"torch", "peft", "vllm", "yaml"} <= found
    assert [name for name in found if not known & set(map(canonicalize_name, sources.get(name, [name])))] == []


def test_the_wheel_runs_in_an_empty_environment(installed, tmp_path):
    environment = {name: os.environ[name] for name in ("HOME", "SWAA_CACHE", "XDG_CACHE_HOME") if name in os.environ}
    environment |= {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}

    def run(*words):
        return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)

    place = run(installed / "python", "-c", "import swaa; print(swaa.__file__)").stdout
    assert Path(place.strip()).is_relative_to(installed.parent)
    words = f"compare -m {default_model_path()} -r naive --length 256 --window 32 --samples 1 --device cpu".split()
    done = run(installed / "swaa", *words)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^ *naive +0\.00", done.stdout, re.MULTILINE), done.stdout
    assert "no plots: plots need matplotlib: pip install 'swaa[demo]'" in done.stderr
    (results,) = (tmp_path / "results").glob("*/results.json")
    assert json.loads(results.read_text())["environment"]["swaa"] == swaa.__version__


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
