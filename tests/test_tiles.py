"""The tiles of GPU kernels against the oracle: every visible pair is covered, every full part is really full."""

import pytest
import torch

from swaa.attention.tiles import block_lists, padded_ranks, plain_ranks, tile_ranges, visible_ranks
from swaa.cache.held import released_view
from swaa.config import LayerRule
from swaa.geometry import build_geometry
from swaa.mask import oracle_mask
from test_attention import PASSES, RULES


def held_oracle(geometry, view, rule):
    """The oracle's mask over the keys that a released view holds."""
    mask = oracle_mask(geometry, rule).expand(geometry.batch, -1, -1)
    if not view.released:
        return mask
    sinks = geometry.sink_columns(view.slots).expand(geometry.batch, -1)
    slots = mask.gather(2, sinks[:, None].expand(-1, geometry.rows, -1)) & (sinks < view.released)[:, None]
    return torch.cat([slots, mask[..., view.released :]], dim=-1)


def rank_mask(view, rule):
    ranks = padded_ranks(view, rule) or plain_ranks(view, rule)
    return visible_ranks(
        ranks.query[..., None], ranks.start[..., None], ranks.dense[..., None], ranks.key[:, None], rule
    )


def check(geometry, view, rule, size):
    expected = held_oracle(geometry, view, rule)
    assert torch.equal(rank_mask(view, rule).expand_as(expected), expected)
    ranks = padded_ranks(view, rule)
    ranges = tile_ranges(view, rule, ranks, size)
    ranges = ranges.expand(geometry.batch, -1, -1)
    keys = torch.arange(expected.shape[-1])
    for row in range(geometry.batch):
        for tile, (sink_start, sink_stop, start, full_start, full_stop, stop) in enumerate(ranges[row].tolist()):
            seen = expected[row, tile * size : (tile + 1) * size]
            covered = ((keys >= sink_start) & (keys < sink_stop)) | ((keys >= start) & (keys < stop))
            assert sink_stop <= start or sink_stop <= sink_start
            assert 0 <= start <= full_start <= full_stop <= stop <= len(keys)
            assert not (seen & ~covered).any()
            real = torch.ones(len(seen), dtype=torch.bool)
            if geometry.segments is not None:
                real = geometry.segments[row, geometry.past :][tile * size : (tile + 1) * size] >= 0
            assert seen[real, full_start:full_stop].all()
    for block_size in (16, 64):
        lists = block_lists(ranges, block_size, full_sinks=ranks is None)
        assert len(set(zip(*(x.tolist() for x in (lists.batch, lists.tile, lists.block)), strict=True))) == len(
            lists.tile
        )
        listed = torch.zeros_like(expected)
        for b, tile, block, full in zip(lists.batch, lists.tile, lists.block, lists.full, strict=True):
            part = (b, slice(tile * size, (tile + 1) * size), slice(block * block_size, (block + 1) * block_size))
            assert not listed[part].any()
            listed[part] = True
            if full:
                assert (block + 1) * block_size <= len(keys)
                visible = expected[part]
                if geometry.segments is not None:
                    visible = visible[geometry.segments[b, geometry.past :][part[1]] >= 0]
                assert visible.all()
        assert not (expected & ~listed).any()


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("kind", PASSES, ids=lambda name: name.replace(" ", "_"))
def test_tiles_cover_what_is_visible(kind, rule):
    geometry = build_geometry(**PASSES[kind])
    check(geometry, geometry, rule, 32)


@pytest.mark.parametrize("sinks", [0, 4, 30])
@pytest.mark.parametrize(
    "kind",
    [
        "chunk",
        "chunk of one row",
        "decode",
        "decode of drafts",
        "left padding, chunk",
        "left padding, decode",
        "padding inside",
    ],
    ids=lambda name: name.replace(" ", "_"),
)
def test_tiles_of_released_keys(kind, sinks):
    geometry, rule = build_geometry(**PASSES[kind]), LayerRule(window=20, sinks=sinks)
    released = geometry.first_needed(20, geometry.past)
    check(geometry, released_view(geometry, released, sinks), rule, 32)


def test_tiles_are_few():
    """A sliding tile has sinks, window and its own diagonal, whatever the length; most of it needs no mask."""
    geometry, rule = build_geometry(batch=1, past=0, rows=65536), LayerRule(window=2048, sinks=128)
    ranges = tile_ranges(geometry, rule, None, 128)
    lists = block_lists(ranges, 128, full_sinks=True)
    per_tile = torch.bincount(lists.tile)
    assert per_tile.max() == 18
    assert torch.bincount(lists.tile, lists.full)[-1] == 16
