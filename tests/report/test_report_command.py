"""`swaa report`: the files that it writes, and mistakes."""

import csv
import sys

import pytest
from typer.testing import CliRunner

from swaa.cli import app
from swaa.report.export import to_markdown
from swaa.report.reading import FIELDS


def report(*args):
    return CliRunner().invoke(app, ["report", *map(str, args)])


def test_csv_is_the_summary(folder, run, tmp_path):
    target = tmp_path / "made" / "mine.html"
    result = report(folder, "-o", target, "--csv", "--markdown")
    assert result.exit_code == 0, result.output
    assert result.stdout.split() == [str(target.with_suffix(suffix)) for suffix in (".html", ".md", ".csv")]
    with target.with_suffix(".csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["run", "model", *FIELDS]
    for written, row in zip(rows, run.rows, strict=True):
        assert (written["run"], written["model"], written["recipe"]) == ("eval-a", run.model, row["recipe"])
        for key in ("score", "low", "perplexity", "prefill_seconds"):
            assert (written[key] == "") == (row[key] is None)
            assert row[key] is None or float(written[key]) == pytest.approx(row[key], rel=1e-5)
    assert target.with_suffix(".md").read_text().endswith(to_markdown([run]))


def test_only_reports_are_replaced(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert report(folder, "--csv", "--markdown").exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.csv", "report.html", "report.md"]
    for name in ("report.md", "report.csv", "report.html"):
        before = (tmp_path / name).read_text()
        (tmp_path / name).write_text("my notes")
        result = report(folder, "--csv", "--markdown")
        assert result.exit_code == 2
        assert f"error: {name} exists and is no report of swaa" in result.stderr
        assert (tmp_path / name).read_text() == "my notes"
        (tmp_path / name).write_text(before)


def test_mistakes_are_one_line(folder, tmp_path):
    for args, message in [
        ([tmp_path], "holds no results"),
        ([folder, "-o", tmp_path / "report.pdf"], "give it a name that ends in .html"),
    ]:
        result = report(*args)
        assert result.exit_code == 2
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
    assert report().exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_without_jinja2(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.delitem(sys.modules, "swaa.report.html")
    result = report(folder, "-o", tmp_path / "report.html")
    assert result.exit_code == 2
    assert "pip install 'swaa[report]'" in result.stderr
    assert list(tmp_path.iterdir()) == []
