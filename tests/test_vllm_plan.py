"""The vLLM planner, without vLLM: pieces and their blocks give exactly the keys that `swaa.mask` says."""

import numpy as np
import pytest
import torch

from swaa.config import LayerRule
from swaa.geometry import build_geometry
from swaa.mask import oracle_mask
from swaa.vllm.plan import cut, virtual_requests

RULES = [
    LayerRule(window=1),
    LayerRule(window=5),
    LayerRule(window=5, sinks=3),
    LayerRule(window=5, sinks=9, fa_decode=True),
    LayerRule(window=2, sinks=4, dense_tail=3),
    LayerRule(window=16, sinks=1, dense_tail=4, fa_decode=True),
    LayerRule(window=200, sinks=3),
]
# Tokens before a step, rows in it, prompt tokens: prompts, chunks of them, one-row chunks, generated rows, drafts,
# requests that were thrown out and resumed, and padding.
REQUESTS = np.array(
    [(0, 40, 40), (0, 1, 1), (17, 9, 60), (31, 1, 32), (32, 1, 32), (50, 1, 20), (44, 5, 30), (0, 70, 45), (9, 0, 0)]
)


def oracle(rule, past, rows, prompt):
    return oracle_mask(build_geometry(batch=1, past=past, rows=rows, prompt_end=prompt), rule)[0]


def seen_by(rule, piece, block):
    """The keys that a step's pieces see, by request and position: bool rows over the request's positions."""
    pieces = cut(rule, *REQUESTS.T, piece=piece)
    if pieces is None:
        return None
    virtual, found = virtual_requests(rule, pieces, block), {}
    for index in range(len(pieces)):
        columns = virtual.columns(index, block)
        position = (columns[:, None] * block + np.arange(block)).reshape(-1)[: virtual.length[index]]
        own = np.arange(virtual.length[index])
        for row in range(pieces.rows[index]):
            # A kernel knows only the virtual request: its own positions, and the mask over them.
            at = virtual.length[index] - pieces.rows[index] + row
            seen = (own <= at) & ((own < virtual.visible[index]) | (at - own < rule.window))
            request = int(pieces.request[index])
            found[request, int(pieces.first[index]) + row] = set(position[seen].tolist())
    return found


@pytest.mark.parametrize("block", [1, 4, 16])
@pytest.mark.parametrize("piece", [1, 7, 256])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_pieces_see_what_the_mask_says(rule, piece, block):
    found = seen_by(rule, piece, block)
    count = 0
    for request, (past, rows, prompt) in enumerate(REQUESTS.tolist()):
        mask = oracle(rule, past, rows, prompt) if rows else torch.ones(0, 0, dtype=torch.bool)
        for row in range(rows):
            expected = set(mask[row].nonzero()[:, 0].tolist())
            if found is None:
                assert expected == set(range(past + row + 1))
            else:
                assert found[request, past + row] == expected
            count += 1
    assert found is None or len(found) == count
    assert (found is None) == (rule.window == 200)


@pytest.mark.parametrize("rule", RULES[:-1], ids=str)
def test_pieces_cover_the_rows_in_order(rule):
    pieces = cut(rule, *REQUESTS.T, piece=7)
    rows = [
        (request, first + row)
        for request, first, count in zip(pieces.request, pieces.first, pieces.rows, strict=True)
        for row in range(count)
    ]
    expected = [(r, past + row) for r, (past, count, _) in enumerate(REQUESTS.tolist()) for row in range(count)]
    assert rows == expected
    assert pieces.starts[-1] == len(expected)
    assert pieces.rows[pieces.sliding].max() <= 7


@pytest.mark.parametrize("rule", RULES[:-1], ids=str)
def test_the_cost_of_a_sliding_piece_does_not_grow_with_the_context(rule):
    for past in (1000, 100_000):
        pieces = cut(rule, np.array([past]), np.array([64]), np.array([past + 500]), piece=64)
        assert pieces.sliding.all()
        length = virtual_requests(rule, pieces, 16).length
        assert length.max() <= rule.sinks + rule.window + 64 + 3 * 16


def test_full_attention_for_generated_rows_needs_no_mask():
    """The step that decoding consists of is vLLM's own."""
    rule = LayerRule(window=5, sinks=3, fa_decode=True)
    assert cut(rule, np.array([500, 600]), np.array([1, 1]), np.array([400, 600])) is None
    # One row of a prompt is not one of them, however much it looks like it.
    assert cut(rule, np.array([500, 600]), np.array([1, 1]), np.array([400, 601])) is not None
