"""`swaa bench attention`: every implementation computes the mask that it names, and what its columns mean."""

import pytest
import torch

from bench_runs import CPU, FLOORS, ONCE, make_tiny, run
from swaa.attention import BACKENDS
from swaa.bench import attention, implementations
from swaa.bench.implementations import IMPLEMENTATIONS, Case, Implementation
from swaa.bench.timing import failed
from swaa.config import LayerRule
from swaa.cost import visible_pairs
from swaa.geometry import build_geometry
from swaa.mask import oracle_mask
from swaa.registry import Registry

RULE = LayerRule(window=5, sinks=2, dense_tail=3)


@pytest.fixture(autouse=True)
def tiny_everything(monkeypatch):
    make_tiny(monkeypatch)


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
