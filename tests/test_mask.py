"""The rule and the description of a pass against plain Python loops that share no code with them."""

import pytest
import torch

from swaa.config import LayerRule
from swaa.geometry import build_geometry
from swaa.mask import oracle_mask


def loop_mask(tokens, rule, dense):
    """The rule in three lines. `tokens`: (segment, position) of each column of one row, None for padding."""
    seen = torch.zeros(len(tokens), len(tokens), dtype=torch.bool)
    for i, q in enumerate(tokens):
        for j, k in enumerate(tokens[: i + 1]):
            if q and k and q[0] == k[0]:
                near, sink = q[1] - k[1] < (rule.window or 10**9), k[1] < rule.sinks
                seen[i, j] = near or sink or dense[i]
    return seen


def row(text):
    """Read a row: '.' padding, letters tokens, a new letter a new segment."""
    tokens, counts = [], {}
    for letter in text:
        counts[letter] = counts.get(letter, -1) + 1
        tokens.append(None if letter == "." else (letter, counts[letter]))
    return tokens


RULES = [
    LayerRule(window=window, sinks=sinks, fa_decode=fa_decode, dense_tail=tail)
    for window in (1, 2, 5, 50)
    for sinks in (0, 1, 7)
    for fa_decode in (False, True)
    for tail in (0, 3)
] + [LayerRule()]

# rows, generated columns of each row ("g"), columns of each row's last prompt tokens with a tail of 3 ("t")
CASES = [
    (["aaaaaaaaaaaa"], ["........gggg"], [".....ttt...."]),
    (["..aaaaaaaaaa", "aaaaaaaaaaaa"], ["........gggg"] * 2, [".....ttt...."] * 2),
    ([".......aaaaa"], ["........gggg"], [".......t...."]),
    (["aaaaaaaa...."], ["......gg...."], ["...ttt......"]),
    (["aaa.aaaa..aa"], ["..........gg"], [".....ttt...."]),
    (["aaaaaaaaaaaa"], [".....gg..ggg"], ["..ttt..tt..."]),
]


def columns(marks, letter):
    return torch.tensor([[mark == letter for mark in line] for line in marks])


def check(rows, flags, tail, rule, past, **phase):
    real = torch.tensor([[c != "." for c in line] for line in rows])
    geometry = build_geometry(batch=len(rows), past=past, rows=12 - past, attention_mask=real.long(), **phase)
    mask = oracle_mask(geometry, rule)
    dense = columns(tail, "t") & (rule.dense_tail > 0) | flags & rule.fa_decode
    for index, line in enumerate(rows):
        expected = loop_mask(row(line), rule, dense[index].tolist())
        assert torch.equal(mask[index if len(mask) > 1 else 0], expected[past:])


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize(("rows", "generated", "tail"), CASES[:-1])
@pytest.mark.parametrize("past", [0, 5, 11])
def test_generated_from_a_column_on(rows, generated, tail, rule, past):
    check(rows, columns(generated, "g"), tail, rule, past, prompt_end=generated[0].index("g"))


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize(("rows", "generated", "tail"), CASES)
def test_generated_rows_by_flags(rows, generated, tail, rule):
    flags = columns(generated, "g")
    check(rows, flags, tail, rule, 0, dense_rows=flags)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("text", ["aaabbbbbbbbbccd", "aaaaaaabbbbb...", "ab.cccccc.ddddd"])
def test_packed_segments(text, rule):
    tokens = row(text)
    positions = torch.tensor([[token[1] if token else 0 for token in tokens]])
    real = torch.tensor([[token is not None for token in tokens]])
    geometry = build_geometry(batch=1, past=0, rows=15, attention_mask=real.long(), position_ids=positions)
    counts = {letter: text.count(letter) for letter in text}
    dense = [bool(token) and counts[token[0]] - token[1] <= rule.dense_tail for token in tokens]
    assert torch.equal(oracle_mask(geometry, rule)[0], loop_mask(tokens, rule, dense))


def test_a_chunk_knows_how_far_its_prompt_goes_on():
    geometry = build_geometry(batch=1, past=0, rows=6, attention_mask=torch.tensor([[0, 1, 1, 1, 1, 1]]), prompt_end=8)
    rule = LayerRule(window=1, dense_tail=4)  # the tail is the columns 4 to 7
    assert geometry.dense_rows(rule).tolist() == [[False, False, False, False, True, True]]


@pytest.mark.parametrize("lengths", [30, torch.tensor([30, 12, 1])])
def test_prompt_lengths_count_real_tokens(lengths):
    mask = torch.ones(3, 50, dtype=torch.long)
    mask[1, :19] = 0
    geometry = build_geometry(batch=3, past=0, rows=50, attention_mask=mask, prompt_length=lengths)
    dense = geometry.dense_rows(LayerRule(window=4, fa_decode=True))
    wanted = [30, 30, 30] if isinstance(lengths, int) else lengths.tolist()
    assert dense.sum(-1).tolist() == [50 - wanted[0], 31 - wanted[1] if wanted[1] < 31 else 0, 50 - wanted[2]]


def test_no_padding_needs_no_positions():
    geometry = build_geometry(
        batch=2, past=0, rows=9, attention_mask=torch.ones(2, 9), prompt_length=torch.tensor([4, 4])
    )
    assert geometry.positions is None
    assert geometry.prompt_end == 4


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"attention_mask": torch.ones(1, 4)}, r"attention_mask has shape \(1, 4\)"),
        ({"attention_mask": torch.ones(2, 9)}, "covers"),
        ({"dense_rows": torch.ones(1, 3, dtype=torch.bool)}, "dense_rows has shape"),
        ({"prompt_length": torch.tensor([1, 2])}, "prompt_length"),
        ({"prompt_length": -1}, "prompt_length"),
        ({"prompt_length": torch.tensor([1.5])}, "prompt_length"),
    ],
)
def test_wrong_shapes_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build_geometry(batch=1, past=0, rows=9, **kwargs)
