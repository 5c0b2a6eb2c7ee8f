"""What all tasks have in common: the registry, what a sample depends on, wrong requests, and free answers."""

import pytest

from swaa.tasks import TASKS, Sample, correct_text
from swaa.tasks.base import leading_ids

# Tasks that need no data set.
MADE_HERE = [name for name in TASKS if not hasattr(TASKS[name], "path")]


def test_the_registry_describes_each_task_in_a_line():
    lines = [TASKS[name].describe for name in TASKS]
    assert MADE_HERE[:4] == ["needle", "needle-multikey", "needle-noise", "perplexity"]
    assert all(name.startswith("ruler-") for name in MADE_HERE[4:])
    assert set(TASKS) - set(MADE_HERE) == {"ruler-qa-1", "ruler-qa-2", "longmemeval", "longbench-v2"}
    assert len(MADE_HERE) == 15
    assert len(set(lines)) == len(lines)
    assert not any("\n" in line or len(line) > 80 for line in lines)
    with pytest.raises(ValueError, match=r"unknown task .nedle.\. Did you mean .needle."):
        TASKS["nedle"]


@pytest.mark.parametrize("name", MADE_HERE)
def test_a_sample_depends_on_seed_split_and_index_only(tokenizer, short_books, name):
    task = TASKS[name]
    few = task.samples(tokenizer, length=2000, count=2, seed=5)
    assert task.samples(tokenizer, length=2000, count=6, seed=5)[:2] == few
    prompts = {few[0].prompt_ids, few[1].prompt_ids}
    prompts |= {sample.prompt_ids for sample in task.samples(tokenizer, length=2000, count=2, seed=6)}
    prompts |= {s.prompt_ids for s in task.samples(tokenizer, length=2000, count=2, seed=5, split="calibration")}
    assert len(prompts) == 6


def test_leading_special_tokens_come_once(tokenizer, special_tokenizer, short_books):
    first = special_tokenizer.bos_token_id
    assert leading_ids(tokenizer) == []
    assert leading_ids(special_tokenizer) == [first]
    for name in MADE_HERE:
        sample = TASKS[name].samples(special_tokenizer, length=2000, count=1, seed=0)[0]
        assert sample.prompt_ids[0] == first
        everything = sample.prompt_ids[1:] + sample.prefix_ids + sample.answer_ids
        assert not {first, special_tokenizer.eos_token_id} & set(everything)


@pytest.mark.parametrize("name", list(TASKS))
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 0}, "length=0 "),
        ({"count": 0}, "count=0 asks for no sample"),
        ({"split": "tset"}, "split='tset' is unknown. Did you mean 'test'"),
    ],
)
def test_requests_that_no_task_can_serve(tokenizer, name, arguments, message):
    with pytest.raises(ValueError, match=message):
        TASKS[name].samples(tokenizer, **{"length": 400, "count": 1, "seed": 0, **arguments})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is 1234567.", True),
        ("**1234567**", True),
        ("12, 1234567, 7", True),
        ("the number 1,234,567!", True),
        ("1234567", True),
        ("01234567", False),
        ("12345678", False),
        ("1234567.5", False),
        ("0.1234567", False),
        ("1,234,567,890", False),
        ("9,1234567", True),
        ("1 234 567", False),
        ("", False),
    ],
)
def test_free_text_is_right_when_it_has_the_whole_number(text, expected):
    assert correct_text(Sample((), (), (), "1234567"), text) is expected


def test_free_text_needs_an_answer_to_look_for(tokenizer):
    with pytest.raises(ValueError, match="perplexity is scored by likelihood"):
        correct_text(Sample((), (), (), ""), "anything")
