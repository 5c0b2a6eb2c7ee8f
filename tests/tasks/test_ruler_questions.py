"""RULER's questions: those of SQuAD and HotpotQA, with their documents among others."""

import re

import pytest

from chat_tokenizers import CHAT
from dataset_files import make
from swaa.tasks import Sample
from swaa.tasks.ruler_questions import RulerQuestions


def squad(articles=4, paragraphs=3):
    return {
        "version": "v2.0",
        "data": [
            {
                "title": f"T{article}",
                "paragraphs": [
                    {
                        "context": f"Article {article}, paragraph {part}: the code is {article}{part}77.",
                        "qas": [
                            {
                                "question": f"What is the code of {article}.{part}?",
                                "is_impossible": False,
                                "answers": [{"text": f"{article}{part}77", "answer_start": 0}, {"text": "the code"}],
                            },
                            {"question": "Who knows?", "is_impossible": True, "answers": []},
                        ],
                    }
                    for part in range(paragraphs)
                ],
            }
            for article in range(articles)
        ],
    }


def hotpotqa(questions=4, documents=3):
    return [
        {
            "_id": str(number),
            "question": f"Which of {number}?",
            "answer": f"Answer{number}",
            "type": "bridge",
            "level": "hard",
            "supporting_facts": [["A", 0]],
            "context": [
                [f"Title {number}.{part}", [f"Sentence {number}.{part}.", " And more."]] for part in range(documents)
            ],
        }
        for number in range(questions)
    ]


def documents(said):
    """Return the question and the documents of a prompt, their numbers checked."""
    ask = "Answer the question based on the given documents. Only give me the answer and do not output any other words."
    text, question = said.split(f"\n\n{ask}\n\nQuestion: ")
    lead, *found = re.split(
        r"(?:^|\n\n)Document (\d+):\n", text.removeprefix(f"{ask}\n\nThe following are given documents.\n\n")
    )
    assert lead == ""
    assert list(map(int, found[::2])) == list(range(1, len(found) // 2 + 1))
    return question, found[1::2]


def said_of(tokenizer, sample):
    text = tokenizer.decode(sample.prompt_ids)
    if not tokenizer.chat_template:
        assert text.endswith(" Answer:")
        return text.removesuffix(" Answer:")
    before, after = CHAT[tokenizer.name_or_path][2]
    assert text.startswith(before)
    assert text.endswith(f"{after}Answer:")
    return text[len(before) : -len(f"{after}Answer:")]


@pytest.mark.parametrize("name", ["tokenizer", "chat"])
def test_squad_questions_have_their_document_among_neighbours(request, write, name):
    tokenizer = request.getfixturevalue(name)
    task = RulerQuestions("squad", write(squad(articles=9)))
    samples = make(task, tokenizer, length=420)
    assert len(samples) == 10
    places = set()
    for sample in samples:
        question, found = documents(said_of(tokenizer, sample))
        article, part = re.search(r"code of (\d)\.(\d)\?", question).groups()
        assert sample.meta["question"] == question
        assert sample.references == (f"{article}{part}77", "the code")
        assert len(found) == sample.meta["haystack_size"] == len(set(found)) > 3
        # Documents of the same article come first.
        assert sum(text.startswith(f"Article {article},") for text in found) == 3
        places.add(found.index(f"Article {article}, paragraph {part}: the code is {article}{part}77."))
        assert 380 < len(sample.prompt_ids) + 32 <= 420
    # The document with the answer stands anywhere.
    assert len(places) > 2


def test_hotpotqa_questions_have_all_their_documents(tokenizer, write):
    path = write(hotpotqa(questions=12))
    for sample in make(RulerQuestions("hotpotqa", path), tokenizer, length=400):
        question, found = documents(said_of(tokenizer, sample))
        number = re.search(r"Which of (\d+)\?", question)[1]
        assert sample.references == (f"Answer{number}",)
        own = {f"Title {number}.{part}\nSentence {number}.{part}. And more." for part in range(3)}
        assert own < set(found)
        assert len(found) == len(set(found))


def test_questions_whose_documents_do_not_fit_are_left_out(tokenizer, write):
    rows = hotpotqa()
    rows[1]["context"][0][1].append("word " * 500)
    samples = make(RulerQuestions("hotpotqa", write(rows)), tokenizer, length=300)
    assert sorted(sample.meta["row"] for sample in samples) == [0, 2, 3]
    assert samples[-1].meta["left_out"] in (0, 1)
    with pytest.raises(ValueError, match="no sample of 'ruler-qa-2' fits in length=50"):
        make(RulerQuestions("hotpotqa", write(rows)), tokenizer, length=50)


def test_the_document_with_the_answer_is_the_last_to_go(tokenizer, write):
    task = RulerQuestions("squad", write(squad(articles=9)))
    with pytest.raises(ValueError, match=r"fits in length=50: the shortest needs \d+") as error:
        make(task, tokenizer, length=50)
    shortest = int(re.search(r"needs (\d+)", str(error.value))[1])
    for sample in make(task, tokenizer, length=shortest + 5):
        _, (document,) = documents(said_of(tokenizer, sample))
        assert sample.references[0] in document


def test_too_few_documents_begin_again(tokenizer, write):
    sample = make(RulerQuestions("squad", write(squad(articles=1))), tokenizer, length=600, count=1)[0]
    _, found = documents(said_of(tokenizer, sample))
    assert len(set(found)) == 3
    assert len(found) > 6


def test_a_question_does_not_depend_on_the_count(tokenizer, write):
    task = RulerQuestions("squad", write(squad()))
    every = make(task, tokenizer, length=400)
    assert make(task, tokenizer, length=400, count=2) == every[:2]
    assert make(task, tokenizer, length=400, seed=1) != every


def test_files_that_are_not_what_the_source_says(tokenizer, write):
    for source, content in (("squad", hotpotqa()), ("hotpotqa", squad()), ("hotpotqa", [{"question": "?"}])):
        with pytest.raises(ValueError, match=f"has not the schema of '{source}'"):
            make(RulerQuestions(source, write(content)), tokenizer)
    with pytest.raises(ValueError, match="holds no question with an answer"):
        make(RulerQuestions("squad", write({"data": []})), tokenizer)


@pytest.mark.parametrize(
    ("text", "score"), [("It is THE CODE.", 1), ("10077 or the code", 1), ("007", 0), ("a code", 0), ("", 0)]
)
def test_one_of_the_answers_is_enough(text, score):
    """RULER's string_match_part."""
    assert RulerQuestions().score(Sample((), (), (), "", {}, ("0077", "the code")), text) == score
