"""Rows of data sets, the files that they come in, and the samples that are made of them."""

import json

import pyarrow
from pyarrow import parquet

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


def writer(folder):
    """Gives a function that writes rows as a file of the kind that its name says."""

    def write(rows, name="data.json"):
        path = folder / name
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
