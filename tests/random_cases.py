"""Random cases for the property tests: passes, rules and configurations.

The same cases every time, so that a failure is one for everybody. `SWAA_EXAMPLES=20 pytest tests/test_properties.py`
draws twenty times as many, others each time.
"""

import os

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

import swaa
from swaa.config import LayerRule

MORE = int(os.environ.get("SWAA_EXAMPLES", "1"))


def cases(count):
    """Settings of a property that is checked for so many cases."""
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    return settings(
        max_examples=count * MORE, derandomize=MORE == 1, deadline=None, database=None, suppress_health_check=checks
    )


def rules(tail=7):
    sliding = st.builds(
        LayerRule,
        window=st.integers(1, 30),
        sinks=st.integers(0, 12),
        fa_decode=st.booleans(),
        dense_tail=st.integers(0, tail),
    )
    return sliding | st.just(LayerRule())


def flags(count):
    return st.lists(st.booleans(), min_size=count, max_size=count)


@st.composite
def realness(draw, batch, columns):
    """Which columns hold tokens: none padded, left, right, or anywhere."""
    kind = draw(st.sampled_from(["none", "left", "right", "anywhere"]))
    if kind == "none":
        return [[True] * columns] * batch
    if kind == "anywhere":
        return [draw(flags(columns)) for _ in range(batch)]
    counts = [draw(st.integers(0, columns)) for _ in range(batch)]
    return [[(column >= columns - n) if kind == "left" else column < n for column in range(columns)] for n in counts]


@st.composite
def passes(draw, most=24):
    """A forward pass: the arguments of `build_geometry`, and what the rule says about its rows.

    Returns:
        arguments; for each row the (segment, position) of its columns, None for padding; for each row and column
        whether it is generated; and the prompt tokens that are still to come.
    """
    batch, columns = draw(st.integers(1, 3)), draw(st.integers(1, most))
    real = draw(realness(batch, columns))
    phase = draw(st.sampled_from(["none", "prompt_end", "prompt_length", "lengths", "dense_rows"]))
    packed = draw(st.booleans())
    past = 0 if packed else draw(st.integers(0, columns - 1))
    given = {"batch": batch, "past": past, "rows": columns - past}
    if not all(map(all, real)) or draw(st.booleans()):
        given["attention_mask"] = torch.tensor(real).long()
    # Where a segment begins, if it is a token.
    starts = [draw(flags(columns)) if packed else [False] * columns for _ in range(batch)]
    tokens = []
    for row, begins in zip(real, starts, strict=True):
        line, segment, position = [], 0, 0
        for is_token, new in zip(row, begins, strict=True):
            if is_token and new and position:
                segment, position = segment + 1, 0
            line.append((segment, position) if is_token else None)
            position += is_token
        tokens.append(line)
    if packed:
        given["position_ids"] = torch.tensor([[token[1] if token else 0 for token in line] for line in tokens])
    generated, beyond = [[False] * columns for _ in range(batch)], 0
    if phase == "prompt_end":
        end = draw(st.integers(0, columns + 4))
        given["prompt_end"], beyond = end, max(end - columns, 0)
        generated = [[column >= end for column in range(columns)]] * batch
    elif phase in ("prompt_length", "lengths"):
        lengths = [draw(st.integers(0, columns + 4)) for _ in range(batch if phase == "lengths" else 1)]
        given["prompt_length"] = lengths[0] if phase == "prompt_length" else torch.tensor(lengths)
        lengths = lengths if phase == "lengths" else lengths * batch
        generated = [[bool(t) and t[1] >= n for t in line] for line, n in zip(tokens, lengths, strict=True)]
        return given, tokens, generated, lengths
    elif phase == "dense_rows":
        marked = [draw(flags(columns - past)) for _ in range(batch)]
        given["dense_rows"] = torch.tensor(marked)
        generated = [[False] * past + line for line in marked]
    return given, tokens, generated, [beyond] * batch


def configurations(layers=4, kv_heads=2):
    """Valid configurations for a model of so many layers."""

    def build(window, sinks, patterned, named, decode, some, tail, release, heads):
        full = patterned if patterned is not None else named
        taken = set(swaa.SWAAConfig(window=1, full_layers=full).full_layer_numbers(layers))
        fa_decode = decode if some is None else [layer for layer in some if layer not in taken]
        full_heads = {layer: [head] for layer, head in heads.items() if layer not in taken}
        return swaa.SWAAConfig(
            window=window,
            sinks=sinks,
            full_layers=full,
            fa_decode=fa_decode,
            dense_tail=tail,
            release_kv=release,
            full_heads=full_heads,
        )

    numbers = st.lists(st.integers(0, layers - 1), unique=True, max_size=layers - 1)
    return st.builds(
        build,
        window=st.integers(1, 12),
        sinks=st.integers(0, 5),
        patterned=st.none() | st.sampled_from(["none", "odd", "even", "1/4", "1/4@3", "1/3@0"]),
        named=numbers,
        decode=st.booleans(),
        some=st.none() | numbers,
        tail=st.integers(0, 6),
        release=st.booleans(),
        heads=st.dictionaries(st.integers(0, layers - 1), st.integers(0, kv_heads - 1), max_size=2),
    )
