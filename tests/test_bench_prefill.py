"""`swaa bench prefill`: the pass without attention, the arithmetic, and what the columns mean."""

import pytest
import torch

import swaa
from bench_runs import FLOORS, ONCE, make_tiny, run, tiny
from families import tiny_model
from swaa.attention import BACKENDS
from swaa.bench import prefill
from swaa.bench.baselines import NO_ATTENTION, UNADAPTED, attention_left_out
from swaa.bench.models import choose_recipes
from swaa.config import SWAAConfig
from swaa.cost import visible_pairs


@pytest.fixture(autouse=True)
def tiny_everything(monkeypatch):
    make_tiny(monkeypatch)


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
