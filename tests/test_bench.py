"""`swaa bench`: every subcommand on tiny models, what its columns mean, and that nothing is lost or left behind."""

import csv
import json

import pytest
import torch
from transformers import AutoConfig
from typer.testing import CliRunner

import swaa
from families import tiny_model
from swaa.attention import BACKENDS
from swaa.bench import attention, decode, implementations, memory, models, prefill, split, train
from swaa.bench.baselines import NO_ATTENTION, UNADAPTED, attention_left_out
from swaa.bench.floors import Floors, measure_floors
from swaa.bench.implementations import IMPLEMENTATIONS, Case, Implementation
from swaa.bench.models import choose_recipes, configuration, random_model
from swaa.bench.record import Record
from swaa.bench.timing import Effort, attempt, failed, measure
from swaa.cli import app
from swaa.config import ConfigError, LayerRule, SWAAConfig
from swaa.cost import visible_pairs
from swaa.geometry import build_geometry
from swaa.mask import oracle_mask
from swaa.registry import Registry
from swaa.report import scaling
from swaa.train import Lora, add_lora
from swaa.train.loss import install

CPU = torch.device("cpu")
FLOORS = Floors(1e9, 1e9, 8, 8)
ONCE = Effort(repeats=1, seconds=0, warmup=0)
TINY_ROW = {
    "model_type": "qwen3", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 4096,
}  # fmt: skip
REAL = {name: models.CONFIGURATIONS[name] for name in models.CONFIGURATIONS}
RULE = LayerRule(window=5, sinks=2, dense_tail=3)


@pytest.fixture(autouse=True)
def tiny_everything(monkeypatch):
    """A configuration to name, and floors that take no time."""
    monkeypatch.setattr(models, "CONFIGURATIONS", Registry("configuration", {"tiny": TINY_ROW}))
    monkeypatch.setattr("swaa.bench.floors._SIZES", {"cpu": (64, 4096)})
    monkeypatch.setattr("swaa.bench.floors._EFFORT", Effort(1, 0, 1))


def run(folder, *args):
    command = ["bench", *map(str, args), "--config", "tiny", "--device", "cpu", "--dtype", "float32", "-o", folder]
    result = CliRunner().invoke(app, [str(x) for x in command])
    assert result.exit_code == 0, result.output
    (made,) = folder.iterdir()
    with (made / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    content = json.loads((made / "results.json").read_text())
    assert len(content["rows"]) == len(table)
    assert {"command", "settings", "environment", "floors", "rows"} == set(content)
    return content, {path.name for path in made.iterdir()}, result


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


# Attention


def case(length=24):
    return Case(RULE, *(torch.randn(1, length, heads, 16).transpose(1, 2) for heads in (4, 2, 2)))


def runnable():
    return [name for name in IMPLEMENTATIONS if not IMPLEMENTATIONS[name].unavailable(CPU, torch.float32, 16)]


@pytest.mark.parametrize("name", runnable())
def test_an_implementation_computes_the_mask_that_it_names(name):
    found, inputs = IMPLEMENTATIONS[name], case()
    output = found.prepare(inputs)()
    rule = found.rule(RULE)
    expected, _ = BACKENDS["eager"](
        inputs.query, inputs.key, inputs.value, geometry=inputs.geometry, rule=rule, scaling=0.25
    )
    output = output if output.shape == expected.shape else output.transpose(1, 2)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    mask = oracle_mask(build_geometry(batch=1, past=0, rows=24), rule)
    assert visible_pairs(rule, 24) == int(mask.sum())


def test_attention_rows():
    settings = attention.Settings(
        CPU, torch.float32, (4, 2, 16), RULE, (16, 40), implementations=("sdpa", "sdpa-flash-full", "sdpa-cudnn-full")
    )
    seen = []
    missing, *measured = attention.rows(settings, FLOORS, ONCE, seen.append)
    assert missing["note"] == "it needs a CUDA device, not cpu"
    assert settings.count == 1 + len(measured) == 9
    assert len(seen) == 8
    for row in measured:
        pairs = visible_pairs(RULE if row["mask"] == "swaa" else LayerRule(), row["length"])
        flops = 4 * 4 * 16 * pairs * {"forward": 1, "forward+backward": 3.5}[row["pass"]]
        assert row["floor_ms"] == pytest.approx(1e3 * flops / FLOORS.flops)
        assert row["ratio"] == pytest.approx(row["ms"] / row["floor_ms"])
        assert row["tflops"] == pytest.approx(flops / row["ms"] / 1e9)
        assert row["peak_mb"] is None


def test_one_that_fails_does_not_stop_the_others(monkeypatch):
    def prepare(case):
        raise RuntimeError("broken kernel")

    ours, peer = (Implementation(peer, "swaa", lambda *_: None, prepare) for peer in (False, True))
    known = Registry("implementation", {"ours": ours, "peer": peer, "sdpa": IMPLEMENTATIONS["sdpa"]})
    monkeypatch.setattr(attention, "IMPLEMENTATIONS", known)
    settings = attention.Settings(
        CPU, torch.float32, (4, 2, 16), RULE, (16,), implementations=tuple(known), passes=("forward",)
    )
    first, second, third = attention.rows(settings, FLOORS, ONCE, lambda name: None)
    assert first["note"] == "failed: RuntimeError: broken kernel"
    assert second["note"] == "it fails here: RuntimeError: broken kernel"
    assert [failed(row) for row in (first, second, third)] == [True, False, False]
    assert third["ms"] > 0


def test_flex_without_flash_attention_is_measured_only_where_it_differs(monkeypatch):
    monkeypatch.setattr(implementations.flex, "unavailable", lambda *_: None)
    monkeypatch.setattr(implementations.flex, "flash_unavailable", lambda *_: "not installed")
    reason = IMPLEMENTATIONS["flex-on-triton"].unavailable(CPU, torch.bfloat16, 128)
    assert reason == "the row flex shows it: not installed"


def test_bench_attention(tmp_path):
    content, files, result = run(tmp_path, "attention", "-n", "16,32", "-i", "sdpa,triton", "--seconds", 0)
    assert {"table.csv", "results.json", "time-forward-1.png", "time-forward-backward-1.png"} == files
    assert content["settings"]["implementations"] == ["sdpa", "triton"]
    assert content["settings"]["heads"] == [4, 2, 16]
    assert content["settings"]["rule"]["window"] == 2048
    assert "sdpa" in result.stdout


# Prefill


def tiny(seed=0):
    torch.manual_seed(seed)
    return random_model(configuration("tiny"), CPU, torch.float32)


def test_a_prefill_without_attention_hands_the_values_on():
    model = tiny()
    assert NO_ATTENTION not in BACKENDS
    with attention_left_out() as name:
        swaa.adapt(model, SWAAConfig(window=4, backend=name))
        seen = []
        model.model.layers[1].self_attn.o_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        model.model.layers[1].self_attn.v_proj.register_forward_hook(lambda module, args, out: seen.append(out))
        model(torch.arange(10)[None], use_cache=True)
    value, output = seen
    expected = value.reshape(1, 10, 2, 1, 16).expand(-1, -1, -1, 2, -1).reshape(1, 10, 64)
    assert torch.equal(output, expected)
    assert NO_ATTENTION not in BACKENDS


def test_the_arithmetic_counts_one_row_of_logits_and_no_embedding():
    for tied in (True, False):
        model = tiny_model("llama", tie_word_embeddings=tied)
        matrices = sum(m.weight.numel() for m in model.model.modules() if isinstance(m, torch.nn.Linear))
        norms = sum(p.numel() for name, p in model.named_parameters() if "norm" in name)
        head = model.get_output_embeddings().weight.numel()
        rule = SWAAConfig(window=5, sinks=2, full_layers=[1])
        pairs = sum(visible_pairs(x, 30) for x in rule.resolve(4))
        expected = 2 * 30 * (matrices + norms) + 2 * head + 4 * 4 * 8 * pairs
        assert prefill.flops(model, rule, 30) == expected
        assert prefill.flops(model, rule, 30, attention=False) == expected - 4 * 4 * 8 * pairs


def test_prefill_rows(monkeypatch):
    # Tracing takes long, and is tested by itself.
    compiled = []
    monkeypatch.setattr(prefill, "compile_layers", compiled.append)
    recipes = tuple(choose_recipes(["sinks", "full"], window=8, sinks=2))
    settings = prefill.Settings(recipes, (24, 48))
    model, plain = tiny(), tiny()
    rows = list(prefill.rows(model, settings, FLOORS, ONCE, lambda name: None))
    assert settings.count == len(rows) == 2 * 2 * 3 + 2
    assert compiled == [model] * 3
    assert [row["note"] for row in rows if row.get("note")] == []
    for row in rows:
        assert row["ratio"] == pytest.approx(row["seconds"] / row["floor_s"])
        bare = next(
            x for x in rows if (x["recipe"], x["layers"], x["length"]) == (NO_ATTENTION, row["layers"], row["length"])
        )
        assert row["no_attention_ratio"] == pytest.approx(row["seconds"] / bare["seconds"])
        assert (row["compile_s"] is None) == (row["layers"] == "eager")
        kept = 9 if row["recipe"] in ("sinks", NO_ATTENTION) else row["length"]
        assert row["kv_mb"] == pytest.approx(4 * 2 * 2 * 16 * 4 * kept / 1e6)
    assert {row["recipe"] for row in rows} == {NO_ATTENTION, "sinks", "full", UNADAPTED}
    assert swaa.adaptation(model) is None
    ids = torch.arange(20)[None]
    assert torch.equal(model(ids).logits, plain(ids).logits)


def test_bench_prefill(tmp_path):
    content, files, _ = run(
        tmp_path, "prefill", "-n", "16,32", "-r", "sinks,full", "--window", 8, "--no-compile", "--seconds", 0
    )
    assert {"table.csv", "results.json", "time-1.png", "kv-1.png"} == files
    assert content["settings"]["recipes"]["sinks"]["config"]["window"] == 8
    assert len(content["rows"]) == 8


# Decode


@pytest.mark.parametrize("recorded", [True, False])
def test_decode_rows(monkeypatch, recorded):
    """With Triton's interpreter the recorded step runs on the CPU; without it the row says that it did not."""
    if not recorded:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    recipes = tuple(choose_recipes(["sinks"], window=8, sinks=2))
    settings = decode.Settings(recipes, (16,), batches=(2,), new_tokens=10, check=True)
    model = tiny()
    before = model.generation_config
    check, static, dynamic = decode.rows(model, settings, FLOORS, lambda name: None)
    assert settings.count == 3
    assert check["tokens"] == 10
    assert check["note"].startswith("the same tokens")
    assert ("no recorded step" in check["note"]) == (not recorded)
    assert (static["note"] is None) == recorded
    assert dynamic["note"] is None
    weights = sum(p.numel() for p in model.parameters()) - 64 * 32  # not tied: the embedding is looked up
    kept = 4 * 2 * 2 * 16 * 4 * 9
    for row in (static, dynamic):
        assert row["tokens"] == 10 - 1 - 4
        assert row["floor_ms"] == pytest.approx(1e3 * (4 * weights + 2 * kept) / FLOORS.bandwidth)
        assert row["ratio"] == pytest.approx(row["ms"] / row["floor_ms"])
        assert row["kv_mb"] == pytest.approx(2 * kept / 1e6)
    assert model.generation_config is before
    assert swaa.adaptation(model) is None


def test_different_tokens_are_a_failure(monkeypatch):
    answers = iter([torch.arange(30)[None], torch.cat([torch.arange(25), torch.zeros(5)]).long()[None]])
    monkeypatch.setattr(decode, "_generate", lambda *args, **kwargs: next(answers))
    settings = decode.Settings(tuple(choose_recipes(["sinks"], window=8)), (20,), new_tokens=10)
    row = decode._check(tiny(), settings.recipes[0], settings)
    assert row == {"note": "failed: the caches part at token 6 of 10"}


@pytest.mark.parametrize(("values", "message"), [({"new_tokens": 7}, "use 8 or more"), ({"caches": ("x",)}, "static")])
def test_decode_settings_are_checked(values, message):
    with pytest.raises(ValueError, match=message):
        decode.Settings((), (16,), **values)


def test_bench_decode(tmp_path):
    content, files, _ = run(
        tmp_path, "decode", "-n", "16,24", "-r", "sinks", "--window", 8, "--new-tokens", 8, "--caches", "dynamic"
    )
    assert {"table.csv", "results.json", "time-1.png", "kv-1.png"} == files
    assert [row["tokens"] for row in content["rows"]] == [3, 3]


# Training


def with_adapter(config=None):
    """A tiny model as `bench train` has it; the adapter changes nothing yet."""
    torch.manual_seed(1)
    model = add_lora(tiny(), Lora()).train()
    install(model)
    return model if config is None else swaa.adapt(model, config)


def step_and_gradients(model, answer=6):
    torch.manual_seed(0)
    loss = train.training_step(model, 30, 2, answer)()
    return loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("layers", [(), (1, 3)])
def test_two_calls_train_as_one_does(layers):
    config = SWAAConfig(window=5, sinks=2, full_layers=layers, fa_decode=True, dense_tail=3)
    loss, gradients = step_and_gradients(with_adapter(config))
    with split.two_calls("in two", split.by_our_kernels) as name:
        found, others = step_and_gradients(with_adapter(config.replace(backend=name)))
    torch.testing.assert_close(found, loss)
    assert len(gradients) == 2 * 3 * 4
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, atol=1e-6, rtol=1e-5)
    assert "in two" not in BACKENDS
    plain, _ = step_and_gradients(with_adapter())
    assert abs(plain - loss) > 1e-4


def test_a_step_trains_the_answers_by_what_the_mask_lets_them_see():
    config = SWAAConfig(window=5, sinks=2, fa_decode=True)
    loss, _ = step_and_gradients(with_adapter(config))
    model = swaa.adapt(tiny(), config)
    torch.manual_seed(0)
    ids = models.random_tokens(model, 2, 30)
    logits = model(ids, prompt_length=24, use_cache=False).logits[:, 23:-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 24:].flatten())
    torch.testing.assert_close(loss, expected)
    step = train.training_step(model := with_adapter(config), 30, 2, 6)
    losses = [float(step()) for _ in range(30)]
    assert losses[-1] < losses[0]
    assert all(not p.requires_grad for name, p in model.named_parameters() if "lora" not in name)


def test_training_rows():
    recipes = tuple(choose_recipes(["sinks-fa-decode", "sinks"], window=8, sinks=2))
    settings = train.Settings(recipes, (32, 24), batches=(1, 2), answer=5)
    model, plain = tiny(), tiny()
    rows = list(train.rows(model, settings, FLOORS, ONCE, lambda name: None))
    assert settings.count == len(rows) == 6 * 4
    for row in rows:
        if row["recipe"] in ("sdpa-cudnn-full", "two-calls-flash-attn-4"):
            assert row["note"] == "it needs a CUDA device, not cpu"
            continue
        assert row.get("note") is None
        assert row["tokens_per_s"] == pytest.approx(row["batch"] * row["length"] / row["seconds"])
        assert row["ratio"] == pytest.approx(row["seconds"] / row["floor_s"])
        key = ("sdpa-flash-full", row["length"], row["batch"])
        full = next(x for x in rows if (x["recipe"], x["length"], x["batch"]) == key)
        assert row["speedup"] == pytest.approx(full["seconds"] / row["seconds"])
    assert [row["recipe"] for row in rows][::4] == [*train.BASELINES, "sinks-fa-decode", "sinks"]
    # Linear layers: 3 passes of 2 operations a weight; attention: 4.5 times 4 x heads x head dim x pairs; head: twice.
    weights = 4 * (32 * 64 + 2 * 32 * 32 + 64 * 32 + 3 * 32 * 48 + 2 * 32 + 2 * 16) + 32
    pairs = 4 * (sum(min(row + 1, 10) for row in range(27)) + sum(range(28, 33)))
    expected = 3 * 2 * weights * 32 + 4.5 * 4 * 4 * 16 * pairs + 4 * 64 * 32 * 5
    row = next(x for x in rows if (x["recipe"], x["length"], x["batch"]) == ("sinks-fa-decode", 32, 2))
    assert row["floor_s"] == pytest.approx(2 * expected / FLOORS.flops)
    assert swaa.adaptation(model) is None
    ids = torch.arange(20)[None]
    assert torch.equal(model(ids).logits, plain(ids).logits)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert "forward" not in vars(model)


def test_training_settings_are_checked():
    with pytest.raises(ValueError, match="use 2 tokens or more, and less than the 16 of all"):
        train.Settings((), (32, 16), answer=16)
    with pytest.raises(ValueError, match="unknown baseline 'flash'; known: sdpa-flash-full"):
        train.Settings((), (16,), answer=4, baselines=("flash",))


def test_bench_train(tmp_path):
    options = ("--window", 8, "--answer", 4, "--seconds", 0, "--repeats", 1, "--no-gradient-checkpointing")
    content, files, _ = run(tmp_path, "train", "-n", "16,32", *options, "--baselines", "sdpa-flash-full,two-calls")
    assert {"table.csv", "results.json", "throughput-1.png"} == files
    assert content["settings"]["recipes"]["sinks-fa-decode"]["config"]["window"] == 8
    assert content["settings"]["checkpointing"] is False
    assert len(content["rows"]) == 4 * 2


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
