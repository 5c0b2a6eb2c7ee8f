"""`swaa compare`: the files that it writes, the table that it prints, warnings, and mistakes."""

import csv
import json
import math
import re
import sys
from dataclasses import asdict

import pytest
from matplotlib.image import imread
from typer.testing import CliRunner

import swaa.report
from eval_runs import VOCABULARY, overflowing, rig, save, short_books, tiny
from families import tiny_model
from swaa.cli import app
from swaa.compare import MEASURES, Settings, choose_recipes, compare
from swaa.recipes import Recipe
from swaa.report.reading import read_runs

LENGTH = 320
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model on disk."""
    return save(tiny(), tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def short_book():
    with short_books("swaa.tasks.perplexity.prose"):
        yield


# What is written


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def rigged_outcome(monkeypatch, tokenizer):
    rig(monkeypatch, {None: 2, 40: 1})
    recipes = choose_recipes(["naive", "sinks-odd-fa-decode"], length=LENGTH, window=40)
    settings = Settings(length=LENGTH, samples=2, seed=11, perplexity_samples=1, prefill_samples=1)
    return compare(tiny(), tokenizer, recipes, settings, name="owner/tiny")


def test_saved_files(monkeypatch, tmp_path, short_book, tokenizer):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/swaa", "compare", "--length", "320"])
    outcome = rigged_outcome(monkeypatch, tokenizer)
    files = outcome.save(tmp_path)
    names = ["table.csv", "results.json", "accuracy-prefill.png", "masks.png", "layers.png"]
    assert [file.name for file in files] == names
    assert sorted(tmp_path.iterdir()) == sorted(files)

    with files[0].open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["recipe"] for row in table] == ["full", "naive", "sinks-odd-fa-decode"]
    for written, row in zip(table, outcome.rows, strict=True):
        assert list(written) == list(row)
        for measure in MEASURES:
            assert float(written[measure]) == pytest.approx(row[measure], rel=1e-5)
            assert float(written[f"{measure}_ratio"]) == pytest.approx(row[f"{measure}_ratio"], rel=1e-5)

    content = json.loads(files[1].read_text(encoding="utf-8"), parse_constant=refuse)
    assert content["command"] == "swaa compare --length 320"
    assert content["model"] == "owner/tiny"
    assert content["settings"] == asdict(outcome.settings)
    assert content["settings"]["seed"] == 11
    assert content["environment"] == outcome.environment
    assert {"swaa", "torch", "transformers", "python"} <= set(content["environment"])
    assert content["table"] == outcome.rows
    assert content["predictions"] == outcome.predictions
    assert len(content["predictions"]) == 3 * 2
    assert content["predictions"][0]["text"] == "“ü”"
    assert content["seconds"] == round(outcome.seconds, 1)
    again = {name: Recipe.from_dict(name, values) for name, values in content["recipes"].items()}
    assert again == {recipe.name: recipe for recipe in outcome.recipes}

    for file in files[2:]:
        assert file.read_bytes().startswith(PNG)
        picture = imread(file)
        assert min(picture.shape[:2]) > 200
        assert picture.std() > 0.01


def test_the_data_is_written_without_matplotlib(monkeypatch, tmp_path, short_book, tokenizer):
    outcome = rigged_outcome(monkeypatch, tokenizer)
    monkeypatch.delattr(swaa.report, "plots", raising=False)
    monkeypatch.setitem(sys.modules, "swaa.report.plots", None)
    with pytest.raises(ModuleNotFoundError):
        outcome.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "table.csv"]


# The command


def run(*args):
    return CliRunner().invoke(app, ["compare", *(str(arg) for arg in args)])


def rows_of(text):
    """The cells of the table's rows, by recipe."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    head = next(index for index, cells in enumerate(lines) if cells[0] == "recipe")
    return {cells[0]: cells[1:] for cells in lines[head + 1 :] if len(cells) == len(lines[head])}


def test_the_command(monkeypatch, tmp_path, folder, tokenizer):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("swaa.cli.progress._LINE_SECONDS", 0)
    flags = ("--length", LENGTH, "--samples", 2, "--seed", 3, "--dtype", "float32", "--device", "cpu")
    result = run("-m", folder, "-r", "naive, sinks-fa-decode", "--window", 40, "--sinks", 6, *flags)
    assert result.exit_code == 0, result.output
    (saved,) = (tmp_path / "results").iterdir()
    assert re.fullmatch(r"compare-tiny-\d{8}-\d{6}", saved.name)
    assert re.search(rf"^\d+ s; table, predictions and plots in results/{saved.name}$", result.stderr, re.MULTILINE)
    assert "warning" not in result.stderr
    # No terminal here: lines instead of bars.
    assert re.findall(r"^(\d+)% done, about 0:\d\d:\d\d left \((.*)\)$", result.stderr, re.MULTILINE)[-1] == (
        "100",
        "sinks-fa-decode",
    )
    files = {"table.csv", "results.json", "accuracy-prefill.png", "masks.png", "layers.png"}
    assert {path.name for path in saved.iterdir()} == files

    content = json.loads((saved / "results.json").read_text(encoding="utf-8"))
    assert content["settings"] == asdict(Settings(length=LENGTH, samples=2, seed=3))
    assert content["recipes"]["sinks-fa-decode"]["config"]["window"] == 40
    assert content["recipes"]["sinks-fa-decode"]["config"]["sinks"] == 6
    assert len(content["predictions"]) == 3 * 2
    shown = rows_of(result.stdout)
    assert list(shown) == ["full", "naive", "sinks-fa-decode"]
    for row in content["table"]:
        cells = shown[row["recipe"]]
        assert cells[0].startswith("0.00 ")
        assert f"0.00-{row['accuracy_high']:.2f}" in " ".join(cells[:2])
        assert f"{row['nll']:.3f} ({row['nll_ratio']:.1f}x)" in cells
        assert f"{row['perplexity']:.2f} ({row['perplexity_ratio']:.2f}x)" in cells
        assert f"{row['prefill_flops_ratio']:.2f}x" in cells
        assert f"{row['kv_bytes_computed'] / 1e6:,.1f} MB ({row['kv_bytes_computed_ratio']:.2f}x)" in cells
        assert f"{row['prefill_seconds'] * 1000:,.0f} ms ({row['prefill_seconds_ratio']:.2f}x)" in cells
        assert f"{row['kv_bytes'] / 1e6:,.1f} MB ({row['kv_bytes_ratio']:.2f}x)" in cells
    assert f"needle, {LENGTH} tokens, 2 samples, forced" in " ".join(result.stdout.split())

    # The same again, elsewhere: a folder of its own below --output, and the same numbers but for the time.
    again = run("-m", folder, "-r", "naive,sinks-fa-decode", "--window", 40, "--sinks", 6, *flags, "-o", "else/where")
    assert again.exit_code == 0, again.output
    (other,) = (tmp_path / "else" / "where").iterdir()
    repeated = json.loads((other / "results.json").read_text(encoding="utf-8"))
    assert repeated["predictions"] == content["predictions"]


def test_the_command_warns(monkeypatch, tmp_path, folder, short_book):
    monkeypatch.chdir(tmp_path)
    recipes = "naive,paper-thinking-speed"
    result = run("-m", folder, "-r", recipes, "--length", 400, "--window", 400, "--samples", 1)
    assert result.exit_code == 0, result.output
    warnings = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert warnings == [
        "warning: naive: a window of 400 covers all 400 tokens, nothing slides",
        "warning: paper-thinking-speed: a window of 400 covers all 400 tokens, nothing slides",
        "warning: paper-thinking-speed: chain of thought plays no part here, answers are short",
    ]
    assert rows_of(result.stdout).keys() == {"full", "naive", "paper-thinking-speed"}


def test_the_command_warns_of_prompts_beyond_the_models_positions(monkeypatch, tmp_path, folder, short_book):
    monkeypatch.chdir(tmp_path)
    result = run("-m", folder, "-r", "full", "--length", 520, "--samples", 1)
    assert result.exit_code == 0, result.output
    found = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert found == ["warning: 520 tokens are more than the 512 positions that the model was trained on"]
    assert rows_of(result.stdout).keys() == {"full"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--task", "nedle"), "unknown task 'nedle'. Did you mean 'needle'? Known: "),
        (("--task", "perplexity"), "task 'perplexity' retrieves nothing"),
        (("-r", "full,niave"), "unknown recipe 'niave'. Did you mean 'naive'? Known: "),
        (("-r", "absent.yaml"), "cannot read absent.yaml"),
        (("--scoring", "fred"), "scoring='fred': use one of forced, free"),
        (("--samples", 0), "samples=0: use 1 or more"),
        (("--length", 0), "length=0: use 1 or more"),
        (("-r", "naive", "--window", 0), "window=0: give the number of visible tokens"),
        (("-r", "sinks", "--sinks", -1), "sinks=-1: give a number of tokens"),
    ],
)
def test_mistakes_are_found_before_a_model_is_loaded(monkeypatch, tmp_path, flags, message):
    def never(*args, **kwargs):
        raise AssertionError

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("swaa.models.load_model", never)
    result = run(*flags)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_command_leaves_nothing_behind_when_the_task_does_not_fit(monkeypatch, tmp_path, folder):
    monkeypatch.chdir(tmp_path)
    result = run("-m", folder, "--length", 100)
    assert result.exit_code == 2, result.output
    assert result.stderr.strip().startswith("error: length=100 has no room for needle, question and haystack: use ")
    assert (result.stdout, list(tmp_path.iterdir())) == ("", [])


# What is no number


@pytest.mark.parametrize(
    ("scale", "lost"), [(math.inf, "the answer NLL of full, naive; the perplexity"), (2e3, "the perplexity")]
)
def test_numbers_that_are_not_finite_are_left_out(monkeypatch, tmp_path, short_book, scale, lost):
    monkeypatch.chdir(tmp_path)
    model = save(overflowing(scale), tmp_path / "model")
    result = run("-m", model, "-r", "naive", "--window", 40, "--length", LENGTH, "--samples", 2, "--dtype", "float32")
    assert result.exit_code == 0, result.output
    (folder,) = (tmp_path / "results").iterdir()
    content = json.loads((folder / "results.json").read_text(encoding="utf-8"), parse_constant=refuse)
    shown = rows_of(result.stdout)
    with (folder / "table.csv").open(newline="") as file:
        written = {row["recipe"]: row for row in csv.DictReader(file)}
    for row in content["table"]:
        assert (row["perplexity"], row["perplexity_ratio"], written[row["recipe"]]["perplexity"]) == (None, None, "")
        assert (row["nll"] is None) == (scale == math.inf)
        assert shown[row["recipe"]].count("-") == 1 + (scale == math.inf)
    assert {x["nll"] is None for x in content["predictions"]} == {scale == math.inf}
    warnings = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert warnings == [f"warning: left out because it is no finite number: {lost} of full, naive; try another --dtype"]
    assert [row["perplexity"] for row in read_runs([folder])[0].rows] == [None] * 4


# Where it goes


@pytest.mark.parametrize("place", ["afile", "afile/below"])
def test_a_file_in_the_way_is_found_before_a_model_is_loaded(monkeypatch, tmp_path, place):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("swaa.models.load_model", None)
    (tmp_path / "afile").write_text("dear all")
    result = run("-o", place)
    assert result.exit_code == 2
    assert result.stderr == f"error: no folder can be made in {place} (Not a directory): choose another --output\n"
    assert [file.name for file in tmp_path.iterdir()] == ["afile"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("out of memory")])
@pytest.mark.parametrize("before", [False, True])
def test_no_empty_folder_stays_behind(monkeypatch, tmp_path, folder, short_book, error, before):
    def fail(*args, **kwargs):
        assert len(list((tmp_path / "else" / "where").iterdir())) == 1
        raise error

    monkeypatch.chdir(tmp_path)
    if before:
        (tmp_path / "else").mkdir()
    monkeypatch.setattr("swaa.compare.measure_prefill", fail)
    result = run("-m", folder, "-r", "full", "--length", LENGTH, "--samples", 1, "-o", "else/where")
    assert result.exit_code in (1, 130)
    assert [file.name for file in tmp_path.rglob("*")] == ["else"] * before


def test_recipes_under_which_nothing_slides(monkeypatch, tmp_path, short_book):
    monkeypatch.chdir(tmp_path)
    model = tiny_model("gemma3_text", vocab_size=len(VOCABULARY))
    recipes = "naive,sinks-odd-fa-decode"
    flags = ("--window", 40, "--length", LENGTH, "--samples", 1)
    result = run("-m", save(model, tmp_path / "model"), "-r", recipes, *flags)
    assert result.exit_code == 0, result.output
    warnings = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert warnings == [
        "warning: sinks-odd-fa-decode: every layer that could slide keeps full attention, nothing slides"
    ]
