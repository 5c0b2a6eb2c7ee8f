"""The masks and block lists that FlexAttention gets, evaluated here without compiling (tests/test_gpu.py compiles)."""

import pytest
import torch

from swaa.attention import BACKENDS, flex
from swaa.config import LayerRule
from swaa.geometry import build_geometry
from swaa.mask import oracle_mask
from test_attention import PASSES, RULES, real_rows, tensors


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("kind", PASSES, ids=lambda name: name.replace(" ", "_"))
def test_mask_and_block_lists_are_the_oracle(kind, rule):
    geometry = build_geometry(**PASSES[kind])
    block_mask = flex._build(geometry, rule, torch.device("cpu"))
    expected = oracle_mask(geometry, rule).expand(geometry.batch, -1, -1)
    batch, row, key = torch.meshgrid(*map(torch.arange, expected.shape), indexing="ij")
    assert torch.equal(block_mask.mask_mod(batch, torch.zeros_like(batch), row, key), expected)
    listed = torch.zeros_like(expected)
    names = ("kv_num_blocks", "kv_indices"), ("full_kv_num_blocks", "full_kv_indices")
    for count_name, index_name in names:
        counts, indices = getattr(block_mask, count_name), getattr(block_mask, index_name)
        for b, _, tile in counts.nonzero().tolist():
            for block in indices[b, 0, tile, : counts[b, 0, tile]].tolist():
                rows, keys = slice(tile * 128, (tile + 1) * 128), slice(block * 128, (block + 1) * 128)
                batches = b if len(counts) > 1 else slice(None)
                listed[batches, rows, keys] = True
                if count_name.startswith("full") and geometry.segments is None:
                    assert expected[batches, rows, keys].all()
    assert not (expected & ~listed).any()
    # The lists by key blocks hold the same pairs, turned round.
    for kind_of_block in ("", "full_"):
        forward, backward = (
            {
                (b, tile, block) if name == "kv" else (b, block, tile)
                for b, _, tile in getattr(block_mask, f"{kind_of_block}{name}_num_blocks").nonzero().tolist()
                for block in getattr(block_mask, f"{kind_of_block}{name}_indices")[
                    b, 0, tile, : getattr(block_mask, f"{kind_of_block}{name}_num_blocks")[b, 0, tile]
                ].tolist()
            }
            for name in ("kv", "q")
        )
        assert forward == backward


def test_refuses_a_cpu():
    geometry = build_geometry(batch=1, past=0, rows=300)
    with pytest.raises(ValueError, match="needs a CUDA device, not cpu; use 'auto' or 'sdpa'"):
        BACKENDS["flex"](*tensors(geometry), geometry=geometry, rule=LayerRule(window=5), scaling=0.25)


def test_never_runs_uncompiled(monkeypatch):
    """With torch.compile switched off, FlexAttention would silently hold all scores."""
    monkeypatch.setattr(flex, "_compiled", lambda: flex._flex)
    query, key, value = tensors(build_geometry(batch=1, past=0, rows=20))
    with pytest.raises(ValueError, match="quadratic memory"):
        flex._call(query, key, value, return_lse=False, block_mask=None)


def test_compiled_code_tells_rules_and_passes_apart(monkeypatch):
    """What dynamo has compiled for one rule or kind of pass must not answer for another."""
    torch.compiler.reset()
    compiled = torch.compile(flex._flex, dynamic=True, backend="aot_eager")
    monkeypatch.setattr(flex, "_compiled", lambda: compiled)
    for kind in ("prompt", "chunk", "left padding", "prompt and answer"):
        geometry = build_geometry(**PASSES[kind])
        for rule in (RULES[3], RULES[4], RULES[1]):
            inputs = tensors(geometry, heads=2)
            expected, _ = BACKENDS["eager"](*inputs, geometry=geometry, rule=rule, scaling=0.25)
            block_mask = flex._build(geometry, rule, torch.device("cpu"))
            actual, _ = flex._call(*inputs, return_lse=False, block_mask=block_mask, scale=0.25)
            real = real_rows(geometry)
            torch.testing.assert_close(actual.transpose(1, 2)[real], expected[real], atol=1e-5, rtol=1e-5)
    torch.compiler.reset()
