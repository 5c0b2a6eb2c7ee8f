"""What `swaa distill` keeps: exact answers, those that a judge finds right, and those of the right length."""

import pytest

from swaa.distill import Filters, RemoteTeacher, distill
from swaa.distill.filters import is_exact
from swaa.judge import Judge
from swaa.train import read_data
from test_distill import read, said, table


@pytest.mark.parametrize(
    ("text", "reference", "right"),
    [
        ("Oslo", "Oslo", True),
        ("  the  OSLO. ", "Oslo", True),
        ("<think>Rome? No.</think>\n\nOslo!", "Oslo", True),
        ("It has fjords.\n\n**Answer:** Oslo", "Oslo", True),
        ("Answer: Rome\nAnswer: Oslo", "oslo", True),
        ("It is Oslo", "Oslo", False),
        ("Answer: Oslo\nAnswer: Rome", "Oslo", False),
        ("<think>Oslo", "Oslo", False),
        ("", "Oslo", False),
        ("1,234", "1234", True),
    ],
)
def test_exact_match(text, reference, right):
    assert is_exact(text, reference) is right


def test_a_judge_is_asked_about_what_passes_the_other_filters(tmp_path, serve):
    rows = [{"prompt": f"A long text. What is {i}?", "question": f"What is {i}?", "answer": str(i)} for i in range(4)]
    prompts = read(tmp_path, rows)
    replies = iter([{"finish_reason": "length"} | said("0"), "1", "wrong", "It depends."])
    server = serve(lambda body: next(replies))
    verdicts = {"Response: 1": "yes", "Response: wrong": "no", "Response: It": "perhaps"}
    judging = serve(lambda body: next(x for said, x in verdicts.items() if said in body["messages"][0]["content"]))
    answering = RemoteTeacher("big", server.url, parallel=1)
    shown = []
    record = distill(
        prompts,
        answering,
        tmp_path / "out",
        filters=Filters(("length", "judge"), judge=Judge("j", judging.url)),
        progress=lambda *state: shown.append(state),
    )
    assert record["counts"] == {
        "prompts": 4,
        "answers": 4,
        "kept": 1,
        "prompts_kept": 1,
        "rejected": {"length": 1, "judge": 2},
    }
    assert record["filters"]["judge"] == {"model": "j", "votes": 1}
    assert [row["answer"] for row in table(tmp_path / "out")] == ["1"]
    assert [row["passed_judge"] for row in table(tmp_path / "out", "rejected")] == [None, False, False]
    assert len(judging.asked) == 3
    assert any("Question: What is 1?\n" in body["messages"][0]["content"] for body in judging.asked)
    assert shown[0] == ("answering", 0, 4)
    assert shown[-1] == ("judging", 3, 3)
    # Other filters, the same answers: nothing is asked again.
    record = distill(prompts, answering, tmp_path / "out", filters=Filters(("exact",)))
    assert record["counts"]["rejected"] == {"exact": 2}
    assert [row["answer"] for row in table(tmp_path / "out")] == ["0", "1"]
    assert (len(server.asked), len(judging.asked)) == (4, 3)


def test_limits_of_length(tmp_path, serve):
    prompts = read(tmp_path, [{"prompt": "a"}, {"prompt": "b"}])
    server = serve(lambda body: {"finish_reason": "stop"} | said(" " if body["messages"][0]["content"] == "b" else "x"))
    answering = RemoteTeacher("big", server.url)
    # An empty answer teaches nothing, whatever the filters.
    for filters, kept in ((Filters(()), 1), (Filters(("length",), 7), 1), (Filters(("length",), 8), 0)):
        assert distill(prompts, answering, tmp_path / "out", filters=filters)["counts"]["kept"] == kept
    assert table(tmp_path / "out") == []
    with pytest.raises(
        ValueError, match=r"answers\.parquet' is empty.* look at .*rejected\.parquet; .*--max-new-tokens"
    ):
        read_data(tmp_path / "out" / "answers.parquet")
