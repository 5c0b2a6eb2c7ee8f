import json
import re
import sys

import pyarrow
import pytest
from pyarrow import parquet
from transformers import PreTrainedTokenizerFast

from swaa.tasks import TASKS, Sample
from swaa.tasks.longbench import LongBenchV2, option
from swaa.tasks.longmemeval import LongMemEval
from swaa.tasks.ruler_questions import RulerQuestions
from test_tasks import CHAT, byte_level, chat_tokenizer

NAMES = ("ruler-qa-1", "ruler-qa-2", "longmemeval", "longbench-v2")
SESSIONS = [
    [
        {"role": "user", "content": "I moved to Oslo in May.", "has_answer": True},
        {"role": "assistant", "content": 'How "nice"!\nEnjoy.'},
    ],
    [{"role": "user", "content": "What is a fjord?"}, {"role": "assistant", "content": "A narrow inlet."}],
]


def memory_row(number, **changes):
    return {
        "question_id": f"q{number}",
        "question_type": "single-session-user",
        "question": f"Where did I move to, question {number}?",
        "answer": "Oslo",
        "question_date": "2023/05/30 (Tue) 23:40",
        # Not in the order of time, as in the oracle file.
        "haystack_dates": ["2023/05/20 (Sat) 02:21", "2023/04/10 (Mon) 17:50"],
        "haystack_session_ids": ["answer_1", "s2"],
        "haystack_sessions": SESSIONS,
        "answer_session_ids": ["answer_1"],
        **changes,
    }


def choice_row(number, words=50, **changes):
    return {
        "_id": f"id{number}",
        "domain": "Single-Document QA",
        "sub_domain": "Literary",
        "difficulty": "easy",
        "length": "short",
        "question": f" What does part {number} say? ",
        "choice_A": "One",
        "choice_B": "Two ",
        "choice_C": "Three",
        "choice_D": "Four",
        "answer": "ABCD"[number % 4],
        "context": "\n" + " ".join(f"word{i}" for i in range(words)) + "\n",
        **changes,
    }


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


@pytest.fixture(scope="module")
def tokenizer():
    return PreTrainedTokenizerFast(tokenizer_object=byte_level())


@pytest.fixture(scope="module")
def chat():
    return chat_tokenizer("BOS of both")


@pytest.fixture
def write(tmp_path):
    def write(rows, name="data.json"):
        path = tmp_path / name
        if path.suffix == ".jsonl":
            path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
        elif path.suffix == ".parquet":
            parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        else:
            path.write_text(json.dumps(rows, indent=1))
        return str(path)

    return write


def make(task, tokenizer, length=2000, count=10, seed=0, **options):
    return task.samples(tokenizer, length=length, count=count, seed=seed, **options)


# What all data sets have in common


@pytest.mark.parametrize("name", NAMES)
def test_without_a_data_set_the_flag_is_named(tokenizer, name):
    with pytest.raises(ValueError, match=f"task '{name}' needs a data set: .* --data {name}=PATH"):
        make(TASKS[name], tokenizer)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_kept_back_for_calibration(tokenizer, name):
    with pytest.raises(ValueError, match=f"task '{name}' has no calibration split"):
        make(TASKS[name], tokenizer, split="calibration")


@pytest.mark.parametrize(("task", "row"), [(LongMemEval, memory_row), (LongBenchV2, choice_row)])
def test_every_format_gives_the_same_samples(tokenizer, write, task, row):
    rows = [row(number) for number in range(5)]
    first, *others = [
        make(task(write(rows, f"data.{suffix}")), tokenizer, count=3) for suffix in ("json", "jsonl", "parquet", "")
    ]
    assert len(first) == 3
    assert others == [first] * 3


@pytest.mark.parametrize(("task", "row"), [(LongMemEval, memory_row), (LongBenchV2, choice_row)])
def test_the_order_is_the_seeds_and_a_sample_does_not_depend_on_the_count(tokenizer, write, task, row):
    task = task(write([row(number) for number in range(8)]))
    every = make(task, tokenizer, count=20)
    assert make(task, tokenizer, count=3) == every[:3]
    assert sorted(sample.meta["row"] for sample in every) == list(range(8))
    assert [sample.meta["index"] for sample in every] == list(range(8))
    other = make(task, tokenizer, count=20, seed=1)
    assert [sample.meta["row"] for sample in other] != [sample.meta["row"] for sample in every]


def test_rows_of_another_schema_are_named(tokenizer, write):
    rows = [memory_row(0), {"question": "What?", "reply": "That."}]
    with pytest.raises(
        ValueError, match=r"row 1 of .* has fields question, reply; needed are answer, .*; or answer, pr"
    ):
        make(LongMemEval(write(rows)), tokenizer)
    for content, message in (({}, "holds no list of rows"), ([1], "holds no list of rows"), ([], "is empty")):
        with pytest.raises(ValueError, match=message):
            make(LongMemEval(write(content)), tokenizer)


def test_what_is_no_data_set(tokenizer, tmp_path):
    broken, binary = tmp_path / "broken.json", tmp_path / "broken.parquet"
    broken.write_text('{"a": 1}\n{"b"')
    binary.write_bytes(b"no parquet")
    (tmp_path / "odd.json").write_bytes(b"\xff\xfe\x00")
    for path, message in (
        (broken, "is neither JSON nor a JSON object a line"),
        (binary, "is no parquet file"),
        (tmp_path / "odd.json", "cannot be read"),
        (tmp_path, "is neither a file nor a hub id"),
        (tmp_path / "missing.json", "is neither a file nor a hub id"),
        ("missing.json", "is neither a file nor a hub id"),
    ):
        with pytest.raises(ValueError, match=message):
            make(LongBenchV2(str(path)), tokenizer)


def test_a_hub_id_is_loaded_by_datasets(tokenizer, write, monkeypatch):
    import datasets

    rows = [choice_row(number) for number in range(3)]
    one = datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)})
    two = datasets.DatasetDict({"dev": one["train"], "test": one["train"].select([0])})
    known = {"owner/one": one, "owner/two": two}
    monkeypatch.setattr(datasets, "load_dataset", known.__getitem__)
    local = make(LongBenchV2(write(rows)), tokenizer)
    assert make(LongBenchV2("owner/one"), tokenizer) == local
    assert make(LongBenchV2("owner/two:dev"), tokenizer) == local
    assert len(make(LongBenchV2("owner/two:test"), tokenizer)) == 1
    with pytest.raises(ValueError, match="several splits: use one of owner/two:dev, owner/two:test"):
        make(LongBenchV2("owner/two"), tokenizer)
    with pytest.raises(ValueError, match="owner/one has no split 'dev': use one of train"):
        make(LongBenchV2("owner/one:dev"), tokenizer)
    with pytest.raises(ValueError, match="'owner/three' is no file and cannot be fetched from the Hugging Face hub"):
        make(LongBenchV2("owner/three"), tokenizer)


def test_a_file_of_the_hub_is_downloaded(tokenizer, write, monkeypatch):
    files = {
        ("owner/name", "folder/data.json", "dataset"): write([memory_row(0)]),
        ("owner/name", "data.parquet", "dataset"): write([memory_row(0)], "data.parquet"),
    }
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download", lambda repository, file, repo_type: files[repository, file, repo_type]
    )
    with pytest.raises(ValueError, match=r"'owner/name/other\.json' is no file and cannot be fetched"):
        make(LongMemEval("owner/name/other.json"), tokenizer)
    (sample,) = make(LongMemEval("owner/name/folder/data.json"), tokenizer)
    assert make(LongMemEval("owner/name/data.parquet"), tokenizer) == [sample]


@pytest.mark.parametrize(("module", "path"), [("pyarrow.parquet", "data.parquet"), ("datasets", "owner/name")])
def test_a_missing_package_is_named_with_the_extra(tokenizer, write, monkeypatch, module, path):
    path = path if "/" in path else write([choice_row(0)], path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'swaa\[data\]'"):
        make(LongBenchV2(path), tokenizer)


# LongMemEval


def history():
    """The published prompt's history: sessions in the order of time, as JSON, without the mark on the evidence."""
    return (
        "\n### Session 1:\nSession Date: 2023/04/10 (Mon) 17:50\nSession Content:\n\n"
        '[{"role": "user", "content": "What is a fjord?"}, {"role": "assistant", "content": "A narrow inlet."}]\n'
        "\n### Session 2:\nSession Date: 2023/05/20 (Sat) 02:21\nSession Content:\n\n"
        '[{"role": "user", "content": "I moved to Oslo in May."}, '
        '{"role": "assistant", "content": "How \\"nice\\"!\\nEnjoy."}]\n'
    )


LEAD = (
    "I will give you several history chats between you and a user. Please answer the question based on the relevant "
    "chat history."
)
ASKED = "\n\nCurrent Date: 2023/05/30 (Tue) 23:40\nQuestion: Where did I move to, question 0?"


def test_longmemeval_prompts_are_the_published_ones(tokenizer, chat, write):
    task = LongMemEval(write([memory_row(0)]))
    whole = f"{LEAD}\n\n\nHistory Chats:\n\n{history()}{ASKED}\nAnswer:"
    assert tokenizer.decode(make(task, tokenizer)[0].prompt_ids) == whole
    before, after = CHAT["BOS of both"][2]
    (sample,) = make(task, chat)
    assert chat.decode(sample.prompt_ids) == before + whole + after
    assert (sample.answer, sample.references, sample.prefix_ids, sample.answer_ids) == ("Oslo", ("Oslo",), (), ())
    assert sample.meta == {
        "index": 0,
        "seed": 0,
        "split": "test",
        "row": 0,
        "left_out": 0,
        "reasoning": "none",
        "question": "Where did I move to, question 0?",
        "question_id": "q0",
        "question_type": "single-session-user",
        "abstention": False,
    }


def test_longmemeval_asks_for_steps_as_published_where_the_model_reasons(chat, write):
    (sample,) = make(LongMemEval(write([memory_row(0)])), chat, reasoning="prompt")
    text = chat.decode(sample.prompt_ids)
    steps = (
        " Answer the question step by step: first extract all the relevant information, and then reason over the "
        "information to get the answer."
    )
    assert f"{LEAD}{steps}\n\n\nHistory Chats:\n\n{history()}{ASKED}\n\nReason step by step" in text
    assert sample.meta["reasoning"] == "prompt"


def test_longmemeval_leaves_the_score_to_a_judge_and_tells_it_what_it_needs(tokenizer, write):
    rows = [memory_row(0, question_id="q_abs", question_type="multi-session", answer=17)]
    (sample,) = make(LongMemEval(write(rows)), tokenizer)
    assert (sample.meta["question_type"], sample.meta["abstention"]) == ("multi-session", True)
    assert sample.references == ("17",)
    assert LongMemEval().score(sample, "17") is None


def test_longmemeval_leaves_long_histories_out_and_counts_them(tokenizer, write):
    long = [{"role": "user", "content": "word " * 3000}]
    rows = [memory_row(n, haystack_sessions=[long, SESSIONS[1]] if n % 2 else SESSIONS) for n in range(8)]
    samples = make(LongMemEval(write(rows)), tokenizer)
    assert sorted(sample.meta["row"] for sample in samples) == [0, 2, 4, 6]
    assert all(len(sample.prompt_ids) + 500 <= 2000 for sample in samples)
    left_out = [sample.meta["left_out"] for sample in samples]
    assert left_out == sorted(left_out)
    assert 0 < left_out[-1] <= 4
    with pytest.raises(
        ValueError, match=r"no sample of 'longmemeval' fits in length=600: the shortest needs (\d+)"
    ) as e:
        make(LongMemEval(write(rows)), tokenizer, length=600)
    shortest = int(re.search(r"needs (\d+)", str(e.value))[1])
    assert len(make(LongMemEval(write(rows)), tokenizer, length=shortest)) >= 1
    with pytest.raises(ValueError, match="fits in length"):
        make(LongMemEval(write(rows)), tokenizer, length=shortest - 1)


def test_longmemeval_takes_rows_with_a_prompt(tokenizer, write):
    rows = [
        {"prompt": "A long talk.\nQuestion: Where?\nAnswer:", "question": "Where?", "answer": "Oslo"},
        {"prompt": "A long talk.", "question": "Where?", "answer": "Oslo"},
    ]
    samples = sorted(make(LongMemEval(write(rows, "data.parquet")), tokenizer), key=lambda sample: sample.meta["row"])
    texts = [tokenizer.decode(sample.prompt_ids) for sample in samples]
    assert texts[0] == "A long talk.\nQuestion: Where?\nAnswer:"
    assert texts[1] == "A long talk.\n\nQuestion: Where?\nAnswer:"
    assert {sample.meta["question_type"] for sample in samples} == {""}
    assert {sample.meta["abstention"] for sample in samples} == {False}


# LongBench-V2

CHOICES = "\nChoices:\n(A) One\n(B) Two\n(C) Three\n(D) Four"


def test_longbench_prompts_are_the_published_ones(tokenizer, chat, write):
    task = LongBenchV2(write([choice_row(0, words=3)]))
    text = "\n\n<text>\nword0 word1 word2\n</text>\n\n"
    asked = f"What is the correct answer to this question: What does part 0 say?{CHOICES}"
    whole = (
        f"Please read the following text and answer the question below.{text}{asked}\n\n"
        'Format your response as follows: "The correct answer is (insert answer here)".'
    )
    before, after = CHAT["BOS of both"][2]
    (sample,) = make(task, chat)
    assert chat.decode(sample.prompt_ids) == before + whole + after
    assert tokenizer.decode(make(task, tokenizer)[0].prompt_ids) == f"{whole}\nAnswer:"
    assert (sample.answer, sample.references) == ("A", ("A",))
    assert sample.meta["cut_tokens"] == 0
    facts = {"_id": "id0", "domain": "Single-Document QA", "sub_domain": "Literary", "difficulty": "easy"}
    assert sample.meta.items() >= (facts | {"length_class": "short"}).items()
    (sample,) = make(task, chat, reasoning="prompt")
    assert chat.decode(sample.prompt_ids).startswith(
        f"{before}Please read the following text and answer the questions below.{text}{asked}\n\nReason step by step"
    )


def test_longbench_cuts_the_middle_out_as_published(chat, write):
    rows = [choice_row(number, words=2000) for number in range(3)]
    path = write(rows)
    whole = {sample.meta["row"]: sample for sample in make(LongBenchV2(path), chat, length=50_000)}
    for length in (1500, 1501):
        samples = make(LongBenchV2(path), chat, length=length)
        assert len(samples) == 3
        for sample in samples:
            ids, long = sample.prompt_ids, whole[sample.meta["row"]].prompt_ids
            room = length - 128
            assert ids == long[: room // 2] + long[-(room - room // 2) :]
            assert sample.meta["cut_tokens"] == len(long) - room
            assert CHOICES in chat.decode(ids)
    with pytest.raises(ValueError, match="no sample of 'longbench-v2' fits in length=1500: the shortest needs"):
        make(LongBenchV2(path, too_long="leave-out"), chat, length=1500)


def test_longbench_never_cuts_the_question(chat, write):
    rows = [choice_row(0, words=2000), choice_row(1, words=2000, choice_A="very long " * 200)]
    path = write(rows)
    samples = make(LongBenchV2(path), chat, length=1000)
    assert [sample.meta["row"] for sample in samples] == [0]
    with pytest.raises(ValueError, match=r"fits in length=200: the shortest needs \d+") as error:
        make(LongBenchV2(path), chat, length=200)
    shortest = int(re.search(r"needs (\d+)", str(error.value))[1])
    (sample,) = make(LongBenchV2(path), chat, length=shortest)
    assert "What is the correct answer to this question: What does part 0 say?" in chat.decode(sample.prompt_ids)


def test_longbench_takes_rows_with_a_prompt_but_cuts_none(tokenizer, write):
    rows = [{"prompt": "Text. Which?", "answer": "B"}, {"prompt": "word " * 5000, "answer": "C"}]
    (sample,) = make(LongBenchV2(write(rows)), tokenizer)
    assert tokenizer.decode(sample.prompt_ids) == "Text. Which?\nAnswer:"
    assert sample.references == ("B",)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The correct answer is (B).", "B"),
        ("The correct answer is B", "B"),
        ("**The correct answer is (B)**", "B"),
        ("Well. The correct answer is (C), not that the correct answer is (D).", "C"),
        ("The correct answer is A? No: The correct answer is (D)", "D"),
        ("the correct answer is (B)", None),
        ("The answer is (B)", None),
        ("(B)", None),
        ("B", None),
        ("The correct answer is (E)", None),
        ("", None),
    ],
)
def test_options_are_read_as_published(text, letter):
    assert option(text) == letter
    sample = Sample((), (), (), "B", {"reasoning": "none"}, ("B",))
    assert LongBenchV2().score(sample, text) == float(letter == "B")


@pytest.mark.parametrize(
    ("text", "score"),
    [("(B)", 1), ("B", 1), ("B) Two", 1), ("The correct answer is (B)", 1), ("(C)", 0), ("Bread", 0), ("is B", 0)],
)
def test_after_reasoning_the_option_may_stand_alone(text, score):
    assert LongBenchV2().score(Sample((), (), (), "B", {"reasoning": "prompt"}, ("B",)), text) == score


def test_choices_that_do_not_exist():
    with pytest.raises(ValueError, match=r"too_long='leave' is unknown\. Did you mean 'leave-out'"):
        LongBenchV2(too_long="leave")
    with pytest.raises(ValueError, match=r"source='squat' is unknown\. Did you mean 'squad'"):
        RulerQuestions(source="squat")


# RULER's questions


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
