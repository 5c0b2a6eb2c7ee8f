"""The reproduction of the paper's grid: what it covers, and a cell that is stopped, continued and collected."""

import csv
import json
import sys
from collections import Counter
from itertools import product
from pathlib import Path

import pytest

from swaa.config import SWAAConfig

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


def test_the_grid_has_every_combination():
    import reproduce

    configs = [point.recipe(256).config for point in reproduce.grid(256)]
    chosen = {True: [(0, 1, 5, 7)], False: [(7, 18, 20, 23), (7, 8, 18, 19, 20, 21, 23, 24)]}
    for fa_decode, sinks, tail in product((False, True), (0, 10, 64), (0, reproduce.TAIL)):
        for layers in ("none", "1/4", "odd", *chosen[fa_decode]):
            wanted = SWAAConfig(window=256, sinks=sinks, full_layers=layers, fa_decode=fa_decode, dense_tail=tail)
            assert wanted in configs
    assert len(set(configs)) == len(configs) == 56


def test_the_papers_recipes_and_ours_are_listed():
    import reproduce
    import reproduce_table

    for window in reproduce.WINDOWS:
        listed = [point for point in reproduce.grid(window) if reproduce_table._listed(point, window)]
        assert len(listed) == len(reproduce_table.PAPER) + len(reproduce_table.OURS)


def test_cells_are_listed_with_their_cost(monkeypatch, capsys):
    import reproduce

    def listed(*words):
        monkeypatch.setattr(sys, "argv", ["reproduce.py", "--list", *words])
        reproduce.main()
        return capsys.readouterr().out

    names = [line.split()[0] for line in listed("--windows", "64", "32", "--lengths", "512", "256").splitlines()[1:-1]]
    assert names[0] == "original-64-512-answers"
    assert names[-2:] == ["timing-64", "timing-32"]
    assert {f"original-{window}-{length}-queries" for window in (32, 64) for length in (256, 512)} < set(names)
    with pytest.raises(SystemExit):
        listed("--cells", "nothing")
    assert "no such cells: nothing" in capsys.readouterr().err


def test_a_cell_that_was_stopped_is_continued_and_collected(tmp_path, monkeypatch, capsys):
    import reproduce

    words = ["--windows", 16, "--lengths", 128, "--samples", 1, "--device", "cpu"]
    words += ["--cells", "original-16-128-perplexity", "--output", tmp_path / "results", "--publish", tmp_path / "made"]
    monkeypatch.setattr(sys, "argv", ["reproduce.py", *map(str, words), "--minutes", "0"])
    reproduce.main()
    assert "out of time" in capsys.readouterr().out
    cell = tmp_path / "results" / "original-16-128-perplexity"
    first = (cell / "samples.jsonl").read_text()
    assert len(first.splitlines()) == 1
    assert not (cell / "summary.json").exists()
    monkeypatch.setattr(sys, "argv", [str(BENCHMARKS / "reproduce.py"), *map(str, words), "--jobs", "2"])
    reproduce.main()  # the cell in a process of its own
    assert capsys.readouterr().out.endswith("complete\n")
    assert (cell / "samples.jsonl").read_text().startswith(first)
    assert len(json.loads((cell / "run.json").read_text())["sessions"]) == 2
    rows = csv.DictReader((tmp_path / "made" / "table.csv").read_text().splitlines())
    by_name = {row["recipe"]: float(row["perplexity_128"]) for row in rows}
    assert by_name["10 sinks"] < by_name["naive"]
    assert by_name["full"] == min(by_name.values())
    assert "| original | 16 | none | 10 |" in (tmp_path / "made" / "table.md").read_text()
    assert (tmp_path / "made" / "report-16.html").exists()


def test_recipes_are_timed_in_a_new_folder(tmp_path, monkeypatch, capsys):
    import reproduce

    words = ["--windows", 16, "--lengths", 128, "--new-tokens", 8, "--device", "cpu", "--cells", "timing-16"]
    words += ["--output", tmp_path / "results"]
    monkeypatch.setattr(sys, "argv", ["reproduce.py", *map(str, words)])
    monkeypatch.setattr(reproduce, "grid", lambda window: [reproduce.Variant("none", 4, False, 0)])
    reproduce.main()
    assert capsys.readouterr().out.endswith("complete\n")
    rows = [*map(json.loads, (tmp_path / "results" / "timing-16.jsonl").read_text().splitlines())]
    assert [(row["recipe"], row["length"]) for row in rows] == [("full", 128), ("4 sinks", 128)]
    assert min(min(row["prefill_seconds"], row["decode_ms"], row["kv_bytes"]) for row in rows) > 0
    assert rows[1]["kv_bytes"] < rows[0]["kv_bytes"] / 2


def test_the_published_grid_is_whole():
    import reproduce

    with (BENCHMARKS / "reproduce" / "table.csv").open() as file:
        rows = [*csv.DictReader(file)]
    found = Counter((row["weights"], int(row["window"])) for row in rows)
    weights = ("original", "smollm2-fa-decode", "smollm2-4-layers-released")
    assert found == {(x, window): 1 + len(reproduce.grid(window)) for x in weights for window in reproduce.WINDOWS}
    assert [(row["recipe"], name) for row in rows for name, value in row.items() if value == ""] == []
    assert json.loads((BENCHMARKS / "reproduce" / "table.json").read_text())["not_complete"] == []


def test_what_was_published_stays_beside_what_is_new():
    import reproduce_table

    def rows(task, **scores):
        return [{"recipe": name, "task": task, "length": 128, "score": score} for name, score in scores.items()]

    def table(summary, earlier):
        return {row["recipe"]: row for row in reproduce_table._table("original", 16, summary, {}, earlier)}

    first = table(rows("needle", full=0.8, naive=0.2), [])
    assert first["naive"]["of_full"] == pytest.approx(0.25)
    # Of the other task, a recipe is not measured yet: a mean of less would be none.
    second = table(rows("ruler-vt", full=0.4), [*first.values()])
    assert second["full"]["mean"] == pytest.approx(0.6)
    assert (second["naive"]["needle_128"], second["naive"]["mean"], second["naive"]["of_full"]) == (0.2, None, None)
    # A figure that is measured again replaces the one before.
    third = table(rows("ruler-vt", naive=0.1) + rows("needle", naive=0.5), [*second.values()])
    assert third["naive"]["longest_mean"] == pytest.approx(0.3)
    assert third["naive"]["of_full"] == pytest.approx(0.5)
