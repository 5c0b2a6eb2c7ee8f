"""`swaa bench decode`: recorded steps and ordinary ones give the same tokens, and what the columns mean."""

import pytest
import torch

import swaa
from bench_runs import FLOORS, make_tiny, run, tiny
from swaa.bench import decode
from swaa.bench.models import choose_recipes


@pytest.fixture(autouse=True)
def tiny_everything(monkeypatch):
    make_tiny(monkeypatch)


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
