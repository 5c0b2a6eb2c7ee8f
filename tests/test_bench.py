"""`swaa bench`: timing, memory, what is measured, and records of it that are never lost."""

import json

import pytest
import torch
from transformers import AutoConfig
from typer.testing import CliRunner

from bench_runs import CPU, FLOORS, make_tiny, run, tiny
from swaa.bench import memory, models
from swaa.bench.floors import measure_floors
from swaa.bench.models import choose_recipes, random_model
from swaa.bench.record import Record
from swaa.bench.timing import Effort, attempt, failed, measure
from swaa.cli import app
from swaa.config import ConfigError, SWAAConfig
from swaa.report import scaling

REAL = {name: models.CONFIGURATIONS[name] for name in models.CONFIGURATIONS}


@pytest.fixture(autouse=True)
def tiny_everything(monkeypatch):
    make_tiny(monkeypatch)


# Timing


def test_a_call_is_repeated_as_often_as_asked():
    calls = []
    timing = measure(lambda: calls.append(1), CPU, Effort(repeats=5, seconds=0, warmup=2))
    assert len(calls) == 7
    assert timing.repeats == 5
    assert timing.low <= timing.median <= timing.high
    assert timing.first is not None
    assert timing.peak is None


def test_short_calls_are_repeated_until_time_has_passed(monkeypatch):
    clock = iter(x / 2 for x in range(1000))
    monkeypatch.setattr("swaa.bench.timing.time.perf_counter", lambda: next(clock))
    timing = measure(lambda: None, CPU, Effort(repeats=2, seconds=4, warmup=0))
    assert (timing.repeats, timing.median, timing.first) == (8, 0.5, None)


@pytest.mark.parametrize("values", [{"repeats": 0}, {"warmup": -1}, {"seconds": -1}])
def test_effort_is_checked(values):
    with pytest.raises(ValueError, match="use 1 or more repeats"):
        Effort(**values)


def test_what_goes_wrong_becomes_a_note():
    def fail(error):
        raise error

    memory = attempt(lambda: fail(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore")))
    assert memory == {"note": "out of memory: CUDA out of memory. Tried to allocate 9 GiB."}
    assert not failed(memory)
    allocator = attempt(lambda: fail(RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")))
    assert allocator["note"].startswith("out of memory: ")
    mistake = attempt(lambda: fail(RuntimeError("No available kernel")))
    assert mistake == {"note": "failed: RuntimeError: No available kernel"}
    assert failed(mistake)
    assert attempt(lambda: {"ms": 1.0}) == {"ms": 1.0}


def test_floors():
    floors = measure_floors(CPU, torch.float32)
    assert (floors.size, floors.copied) == (64, 4096)
    assert floors.flops > 0
    assert floors.bandwidth > 0


# Memory


def test_bench_memory(tmp_path):
    content, files, _ = run(tmp_path, "memory", "-n", "16,32", "-r", "sinks,sinks-odd,full", "--window", 8)
    assert {"table.csv", "results.json", "kv-1.png"} == files
    for row in content["rows"]:
        assert row["kv_mb"] == row["kv_computed_mb"]
        assert row["peak_mb"] is None
    assert len(content["rows"]) == 6


def test_the_longest_prompt_is_extrapolated():
    assert memory.fits([(10, 120.0)], 1000.0) is None
    assert memory.fits([(10, 500.0), (20, 220.0), (40, 240.0)], 1000.0) == 800
    assert memory.fits([(10, 120.0), (20, 120.0)], 1000.0) is None


# What is measured


def test_configurations_are_the_published_sizes():
    known = {"qwen3-4b": 4_022_468_096, "smollm2-135m": 134_515_008}
    assert known.keys() == set(REAL)
    for name, size in known.items():
        config = AutoConfig.for_model(**REAL[name])
        model = random_model(config, torch.device("meta"), torch.bfloat16)
        assert sum(p.numel() for p in model.parameters()) == size
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_recipes_are_chosen_in_order():
    chosen = choose_recipes(["full", "naive", "sinks"], window=64, sinks=3, backend="sdpa")
    assert [recipe.name for recipe in chosen] == ["full", "naive", "sinks"]
    expected = [SWAAConfig(backend="sdpa"), SWAAConfig(64, backend="sdpa"), SWAAConfig(64, 3, backend="sdpa")]
    assert [recipe.config for recipe in chosen] == expected
    assert [recipe.name for recipe in choose_recipes(None)] == list(models.DEFAULT_RECIPES)
    with pytest.raises(ConfigError, match="several are called 'sinks'"):
        choose_recipes(["sinks", "sinks"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["memory", "-m", "x", "-c", "tiny"], "not both"),
        (["memory", "-c", "tinny"], "Did you mean 'tiny'?"),
        (["prefill", "-c", "tiny", "--baselines", "nothing"], "unknown baseline 'nothing'"),
        (["attention", "-c", "tiny", "-i", "tritn"], "Did you mean 'triton'?"),
        (["attention", "-c", "tiny", "--passes", "backward"], "known: forward, forward+backward"),
        (["decode", "-c", "tiny", "--backend", "flex"], "backend 'flex' cannot be used"),
        (["memory", "-c", "tiny", "-r", "sinks,full,sinks"], "several are called 'sinks'"),
        (["attention", "-c", "tiny", "--device", "cuda:9"], "is not available"),
    ],
)
def test_errors_name_the_fix(tmp_path, args, message):
    result = CliRunner().invoke(app, ["bench", *args, *([] if "--device" in args else ["--device", "cpu"])])
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.startswith("error: ")


def test_a_model_by_its_folder(tmp_path, monkeypatch):
    tiny().save_pretrained(tmp_path / "model")
    monkeypatch.setattr("swaa.models.load_model", lambda name, **_: (tiny(), None))
    command = ["bench", "memory", "-m", tmp_path / "model", "-n", 16, "-r", "sinks", "--device", "cpu", "--json"]
    result = CliRunner().invoke(app, [str(x) for x in [*command, "-o", tmp_path / "out"]])
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert content["settings"]["model"] == str(tmp_path / "model")
    assert content["settings"]["random_weights"] is False


# Records


def test_rows_are_written_as_they_come(tmp_path, monkeypatch):
    def interrupted(model, settings, announce):
        yield {"recipe": "sinks", "batch": 1, "length": 16, "kv_mb": 1.0}
        raise KeyboardInterrupt

    monkeypatch.setattr(memory, "rows", interrupted)
    command = ["bench", "memory", "--config", "tiny", "--device", "cpu", "-o", str(tmp_path)]
    assert CliRunner().invoke(app, command).exit_code == 130
    (made,) = tmp_path.iterdir()
    assert len(json.loads((made / "results.json").read_text())["rows"]) == 1
    assert {"table.csv", "kv-1.png"} < {path.name for path in made.iterdir()}


def test_a_failed_row_is_the_exit_code(tmp_path, monkeypatch):
    def failing(model, settings, announce):
        yield {"recipe": "sinks", "batch": 1, "length": 16, "note": "failed: RuntimeError: no"}

    monkeypatch.setattr(memory, "rows", failing)
    command = ["bench", "memory", "--config", "tiny", "--device", "cpu", "-o", str(tmp_path)]
    assert CliRunner().invoke(app, command).exit_code == 1


def test_a_record_takes_its_columns_only(tmp_path):
    record = Record(tmp_path, ("a", "b"), {}, FLOORS)
    assert record.add({"b": 1}) == {"a": None, "b": 1}
    with pytest.raises(AssertionError, match="c"):
        record.add({"c": 1})


def test_the_plot_has_a_line_for_each_name_and_dashed_floors():
    rows = [
        {"name": "a", "length": 1024, "ms": 1.0, "floor": 0.5},
        {"name": "b", "length": 1024, "ms": None, "floor": None},
        {"name": "a", "length": 512, "ms": 0.5, "floor": 0.25},
    ]
    measured = scaling.lines(rows, "name", "ms")
    assert measured == {"a": [(512, 0.5), (1024, 1.0)]}
    figure = scaling.against_length(
        measured, title="t", subtitle="s", label="ms", floors=scaling.lines(rows, "name", "floor")
    )
    (axes,) = figure.axes
    line, floor = axes.get_lines()
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert (line.get_linestyle(), floor.get_linestyle()) == ("-", "--")
    assert line.get_color() == floor.get_color()
    assert list(floor.get_ydata()) == [0.25, 0.5]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["512", "1k"]
