import math
import random
import re
from collections import Counter

import pytest
from transformers import PreTrainedTokenizerFast

from swaa.prose import NOISE, prose
from swaa.tasks import TASKS, Sample
from swaa.tasks.base import user_turn
from swaa.tasks.ruler_needles import RulerNeedles
from swaa.tasks.ruler_variables import RulerVariables
from swaa.tasks.ruler_words import RulerCommonWords, RulerFrequentWords, zeta
from swaa.tasks.words import name, shuffled_words, word_pairs, words
from test_tasks import CHAT, byte_level, chat_tokenizer

SYNTHETIC = [task for task in TASKS if task.startswith("ruler-") and not task.startswith("ruler-qa")]
NEEDLES = [task for task in SYNTHETIC if "niah" in task]
# Published definitions (synthetic.yaml of RULER): haystack, key type, value type, keys, values, queries.
PUBLISHED = {
    "ruler-niah-single-1": ("noise", "words", "numbers", 1, 1, 1),
    "ruler-niah-single-2": ("essay", "words", "numbers", 1, 1, 1),
    "ruler-niah-single-3": ("essay", "words", "uuids", 1, 1, 1),
    "ruler-niah-multikey-1": ("essay", "words", "numbers", 4, 1, 1),
    "ruler-niah-multikey-2": ("needle", "words", "numbers", 1, 1, 1),
    "ruler-niah-multikey-3": ("needle", "uuids", "uuids", 1, 1, 1),
    "ruler-niah-multivalue": ("essay", "words", "numbers", 1, 4, 1),
    "ruler-niah-multiquery": ("essay", "words", "numbers", 1, 1, 4),
}
TOKENS_TO_GENERATE = {"vt": 30, "cwe": 120, "fwe": 50}
# A haystack that is one unit larger takes about as many tokens more, with the tokenizer of these tests.
UNIT = {"noise": 40, "essay": 15, "needle": 90, "vt": 40, "cwe": 80, "fwe": 60}
NEEDLE = re.compile(r"One of the special magic (\w+) for (\S+) is: (\S+)\.")
PATTERNS = {
    "words": re.compile("[a-z]+-[a-z]+"),
    "numbers": re.compile("[1-9][0-9]{6}"),
    "uuids": re.compile("[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"),
}


@pytest.fixture(scope="module")
def plain():
    return PreTrainedTokenizerFast(tokenizer_object=byte_level())


@pytest.fixture(scope="module")
def chats():
    return {template: chat_tokenizer(template) for template in ("BOS of both", "instruction")}


@pytest.fixture(params=["plain", "BOS of both", "instruction"])
def tokenizer(request, plain, chats):
    return plain if request.param == "plain" else chats[request.param]


def parts(tokenizer, sample):
    """Return what the user says and the answer prefix; the turn around them is checked and taken off."""
    text = tokenizer.decode(sample.prompt_ids)
    if not tokenizer.chat_template:
        before, middle = "", " "
        cut = max(text.rfind(mark) for mark in (" The special magic", " Answer: "))
    else:
        before, after = CHAT[tokenizer.name_or_path][2]
        # No space where a line begins.
        middle = after if after.endswith("\n") else f"{after} "
        cut = text.rindex(middle)
    assert text.startswith(before)
    return text[len(before) : cut], text[cut + len(middle) :]


def context(said):
    """Return the haystack of a needle task and the question after it."""
    lead, text = said.split("\n", 1)
    text, question = text.rsplit("\n", 1)
    assert lead.endswith("afterwards.")
    return lead, text, question


def make(task, tokenizer, length=1500, count=3, seed=0, **options):
    return TASKS[task].samples(tokenizer, length=length, count=count, seed=seed, **options)


@pytest.mark.parametrize("task", SYNTHETIC)
@pytest.mark.parametrize("length", [3000, 5000])
def test_prompt_and_answer_fill_the_length_to_one_unit(tokenizer, task, length):
    room = TOKENS_TO_GENERATE.get(task.removeprefix("ruler-"), 128)
    unit = UNIT[getattr(TASKS[task], "hay", task.removeprefix("ruler-"))]
    assert TASKS[task].max_new_tokens == room
    for sample in make(task, tokenizer, length, count=2):
        assert length - unit < len(sample.prompt_ids) + room <= length
        assert (sample.prefix_ids, sample.answer_ids) == ((), ())
        assert sample.answer == ", ".join(sample.references)


@pytest.mark.parametrize("task", NEEDLES)
def test_needles_are_published_ones(tokenizer, task):
    hay, key_type, value_type, keys, values, queries = PUBLISHED[task]
    for sample in make(task, tokenizer, seed=1):
        said, prefix = parts(tokenizer, sample)
        lead, text, question = context(said)
        found = NEEDLE.findall(text)
        by_key = {key: [value for _, k, value in found if k == key] for _, key, _ in found}
        others = sample.meta["haystack_size"] if hay == "needle" else 0
        assert {kind for kind, _, _ in found} == {value_type}
        assert len(by_key) == max(keys, queries) + others
        assert all(PATTERNS[key_type].fullmatch(key) for key in by_key)
        # No value stands for two keys: the question has one answer.
        assert len({value for _, _, value in found}) == len(found) == max(keys, queries) * values + others
        assert all(PATTERNS[value_type].fullmatch(value) for _, _, value in found)
        asked = sample.meta["keys"]
        assert len(asked) == queries
        assert sorted(sample.references) == sorted(value for key in asked for value in by_key[key])
        assert len(sample.references) == queries * values
        # The order of the answers is that of the keys in the question.
        assert [key for key in asked for _ in range(values)] == [
            key for value in sample.references for _, key, v in found if v == value
        ]
        single = queries * values == 1
        kind = value_type.removesuffix("s") if single else value_type
        query = asked[0] if queries == 1 else f"{asked[0]}, {asked[1]}, {asked[2]}, and {asked[3]}"
        assert lead == (
            f"{'A' if single else 'Some'} special magic {kind} {'is' if single else 'are'} hidden within the following "
            f"text. Make sure to memorize it. I will quiz you about the {kind} afterwards."
        )
        assert question == (
            f"What {'is' if single else 'are all'} the special magic {kind} for {query} mentioned in the provided text?"
        )
        assert prefix == (
            f"The special magic {kind} for {query} mentioned in the provided text {'is' if single else 'are'}"
        )


@pytest.mark.parametrize("task", NEEDLES)
def test_haystacks_are_published_ones(plain, task):
    hay = PUBLISHED[task][0]
    book = " ".join(prose("test").split())
    for sample in make(task, plain, seed=2):
        _, text, _ = context(parts(plain, sample)[0])
        lines = [line for line in text.split("\n") if not NEEDLE.fullmatch(line)]
        if hay == "noise":
            assert set(lines) == {NOISE}
            assert len(lines) == sample.meta["haystack_size"]
        elif hay == "needle":
            assert lines == []
        else:
            assert "\n" not in text
            pieces = [piece.strip() for piece in re.split(NEEDLE.pattern.replace("(", "(?:"), text)]
            assert sum(len(piece.split()) for piece in pieces) == sample.meta["haystack_size"]
            assert all(piece in book for piece in pieces)
            assert " ".join(filter(None, pieces)) in book
            # A needle stands between sentences.
            assert all(piece[-1] in ".!?\"'" for piece in pieces[:-1] if piece)


def test_no_key_comes_twice(plain, monkeypatch):
    few = [f"red-{noun}" for noun in ("bed", "cup", "hat", "pen", "car", "map", "fan", "jar")]
    monkeypatch.setattr("swaa.tasks.ruler_needles.name", lambda rng, split: rng.choice(few))
    for sample in make("ruler-niah-multiquery", plain, count=10):
        assert len(set(sample.meta["keys"])) == 4


def test_depths_are_where_the_asked_needles_are_and_fill_the_text(plain):
    for task in ("ruler-niah-single-1", "ruler-niah-single-2", "ruler-niah-multikey-2", "ruler-niah-multivalue"):
        depths = []
        for sample in make(task, plain, count=20):
            _, text, _ = context(parts(plain, sample)[0])
            places = [text.index(f"is: {value}.") / len(text) for value in sample.references]
            assert sample.meta["depths"] == pytest.approx(places, abs=0.06)
            assert ("depth" in sample.meta) == (len(places) == 1)
            depths += sample.meta["depths"]
        assert min(depths) < 0.1
        assert max(depths) > 0.85
        assert 0.3 < sum(depths) / len(depths) < 0.7


def test_a_book_that_is_too_short_begins_again(plain, monkeypatch):
    book = prose("test")[:3000]
    monkeypatch.setattr("swaa.prose.prose", lambda split: book)
    sample = make("ruler-niah-single-2", plain, length=3000, count=1)[0]
    _, text, _ = context(parts(plain, sample)[0])
    assert sample.meta["haystack_size"] > len(book.split())
    assert text.count(" ".join(book.split()[100:130])) >= 2


@pytest.mark.parametrize("length", [2500, 4200])
def test_variables_form_a_chain_in_order_after_a_solved_example(tokenizer, length):
    for sample in make("ruler-vt", tokenizer, length):
        said, prefix = parts(tokenizer, sample)
        lead = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
        empty, example, task = said.split(lead)
        assert empty == ""
        for text, letters in ((example, 3), (task, 5)):
            lines, _, question = text.partition("\nQuestion: ")
            statements = [line for line in lines.split("\n") if line != NOISE]
            value = re.fullmatch(r"VAR ([A-Z]+) = ([0-9]{5})", statements[0])[2]
            chain = [re.match("VAR ([A-Z]+) ", line)[1] for line in statements]
            assert statements[1:] == [f"VAR {chain[i]} = VAR {chain[i - 1]} " for i in range(1, 5)]
            assert {len(variable) for variable in chain} == {letters}
            assert len(set(chain)) == 5
            assert question.startswith(f"Find all variables that are assigned the value {value} in the text above.")
            answer = (
                "Answer: According to the chain(s) of variable assignment in the text above, 5 variables are assigned "
                f"the value {value}, they are:"
            )
            if letters == 3:
                assert question.endswith(f"above. {answer} {' '.join(chain)}\n\n")
                assert 350 < len(tokenizer.encode(lead + text, add_special_tokens=False)) <= 500
            else:
                assert prefix == answer
                assert sample.references == tuple(chain)
                assert sample.meta["value"] == int(value)
                assert lines.count(NOISE) == sample.meta["haystack_size"]


def test_chains_that_are_not_asked_for_share_nothing_with_the_one_that_is(plain):
    sample = RulerVariables(chains=3, hops=2).samples(plain, length=2500, count=1, seed=0)[0]
    task = parts(plain, sample)[0].rpartition("Memorize")[2]
    values = re.findall("VAR ([A-Z]+) = ([0-9]+)", task)
    assert len(values) == len(set(values)) == 3
    reached = dict(values)
    for new, old in re.findall("VAR ([A-Z]+) = VAR ([A-Z]+)", task):
        reached[new] = reached[old]
    assert len(reached) == 9
    asked = str(sample.meta["value"])
    assert [variable for variable, value in reached.items() if value == asked] == list(sample.references)


def listed(text):
    """Return the words of the numbered list in a text, its numbers checked."""
    entries = re.findall(r"(\d+)\. (\S+)", text)
    assert [int(number) for number, _ in entries] == list(range(1, len(entries) + 1))
    return [word for _, word in entries]


@pytest.mark.parametrize(
    ("length", "times", "example_times", "example_words"), [(3000, (6, 1), (3, 1), 20), (9000, (30, 3), (10, 3), 40)]
)
def test_common_words_are_as_common_as_published(plain, length, times, example_times, example_words):
    for sample in make("ruler-cwe", plain, length, count=2):
        said, prefix = parts(plain, sample)
        lead = (
            "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones "
            "that appear most often.\n"
        )
        question = "\nQuestion: What are the 10 most common words in the above list?"
        answer = "Answer: The top 10 words that appear most often in the list are:"
        empty, example, task = said.split(lead)
        shown, solution = example.split(f"{question} {answer} ")
        assert empty == ""
        assert task.endswith(question)
        assert prefix == answer
        assert solution.endswith("\n")
        counts = Counter(listed(task.removesuffix(question)))
        assert set(listed(task.removesuffix(question))[:10]) != set(sample.references)
        assert sample.references == tuple(word for word in sample.references if counts[word] == times[0])
        assert len(sample.references) == 10
        assert Counter(counts.values()) == {times[0]: 10, times[1]: sample.meta["haystack_size"] - 10}
        counts = Counter(listed(shown))
        assert Counter(counts.values()) == {example_times[0]: 10, example_times[1]: example_words - 10}
        assert sorted(listed(solution)) == sorted(word for word in counts if counts[word] == example_times[0])


def test_more_words_than_the_list_has_are_names(plain):
    rng = random.Random(0)
    source = shuffled_words(rng, "test")
    drawn = [next(source) for _ in range(len(words("test")) + 500)]
    assert sorted(drawn[:-500]) == list(words("test"))
    assert all(PATTERNS["words"].fullmatch(word) for word in drawn[-500:])
    assert len(set(drawn)) == len(drawn)


def test_frequencies_follow_zipfs_law(plain):
    for sample in make("ruler-fwe", plain, 3000):
        said, prefix = parts(plain, sample)
        lead = (
            "Read the following coded text and track the frequency of each coded word. Find the three most frequently "
            "appeared coded words. "
        )
        question = (
            "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most "
            "frequently appeared words in the above coded text?"
        )
        assert said.startswith(lead)
        assert said.endswith(question)
        assert prefix == ("Answer: According to the coded text above, the three most frequently appeared words are:")
        text = said[len(lead) : -len(question)].split(" ")
        assert len(set(text[:30])) > 1
        counts = Counter(text)
        (dots, most), *rest = counts.most_common()
        assert dots == "..."
        size = sample.meta["haystack_size"]
        expected = [int(size * 6 / math.pi**2 / rank**2) for rank in range(1, 3000 // 50 + 1)]
        assert [most, *(count for _, count in rest)] == [count for count in expected if count]
        assert sample.references == tuple(word for word, _ in rest[:3])
        assert rest[2][1] > rest[3][1]
        assert all(re.fullmatch("[a-z]{6}", word) for word, _ in rest)


def test_the_shortest_frequent_words_still_have_three_winners(plain):
    with pytest.raises(ValueError, match="length=60 has no room for this task: use") as error:
        make("ruler-fwe", plain, 60)
    shortest = int(re.search(r"use (\d+)", str(error.value))[1])
    for sample in make("ruler-fwe", plain, shortest):
        counts = Counter(re.findall(r"\b[a-z]{6}\b", parts(plain, sample)[0].split("words. ")[1].split("\n")[0]))
        assert {word for word, _ in counts.most_common(3)} == set(sample.references)
        assert counts.most_common(4)[2][1] > (counts.most_common(4)[3:] or [("", 0)])[0][1]


@pytest.mark.parametrize("alpha", [1.5, 2.0, 3.5])
def test_zeta(alpha):
    known = {1.5: 2.612375348685488, 2.0: math.pi**2 / 6, 3.5: 1.1267338673170566}
    assert zeta(alpha) == pytest.approx(known[alpha], rel=1e-7)


@pytest.mark.parametrize("task", SYNTHETIC)
def test_the_shortest_length_is_named_and_works(plain, task):
    with pytest.raises(ValueError, match=r"length=40 has no room for this task: use \d+ or more") as error:
        make(task, plain, 40)
    shortest = int(re.search(r"use (\d+)", str(error.value))[1])
    samples = make(task, plain, shortest)
    longest = max(len(sample.prompt_ids) for sample in samples) + TASKS[task].max_new_tokens
    assert longest in (shortest - 1, shortest)


@pytest.mark.parametrize("task", SYNTHETIC)
def test_no_prefix_is_forced_on_a_model_that_reasons_first(plain, chats, task):
    for tokenizer in (plain, chats["BOS of both"]):
        after = user_turn(tokenizer, "prompt")[1]
        direct, reasoned = (make(task, tokenizer, 2500, reasoning=way)[0] for way in ("none", "prompt"))
        text = tokenizer.decode(reasoned.prompt_ids)
        assert "Reason step by step" in after
        assert text.endswith(after)
        assert reasoned.references == direct.references
        assert reasoned.meta["reasoning"] == "prompt"
        last = tokenizer.decode(direct.prompt_ids)[-30:]
        assert last.endswith(("is", "are", "are:"))
        assert not text.endswith(last)


def test_thinking_needs_a_model_that_thinks(plain):
    with pytest.raises(ValueError, match="reasoning='thinking' needs a chat template"):
        make("ruler-vt", plain, reasoning="thinking")


def test_splits_share_no_words():
    assert not set(words("test")) & set(words("calibration"))
    for split in ("test", "calibration"):
        listed = words(split)
        adjectives, nouns = word_pairs(split)
        assert len(listed) > 4000
        assert all(re.fullmatch("[a-z]{4,}", word) for word in listed)
        assert not {"that", "with", "would", "they"} & set(listed)
        assert set(adjectives) | set(nouns) <= set(listed)
        assert not set(adjectives) & set(nouns)
        assert len(adjectives) * len(nouns) > 100_000
    with pytest.raises(ValueError, match="split='tset' is unknown"):
        words("tset")


def test_splits_share_no_keys_and_no_prose(plain):
    for task in ("ruler-niah-multiquery", "ruler-niah-multikey-2", "ruler-cwe"):
        seen = {}
        for split in ("test", "calibration"):
            texts = [parts(plain, sample)[0] for sample in make(task, plain, 2500, split=split)]
            if task == "ruler-cwe":
                seen[split] = {word for text in texts for _, word in re.findall(r"(\d+)\. ([a-z]+)", text)}
            else:
                keys = {key for text in texts for _, key, _ in NEEDLE.findall(text)}
                seen[split] = {word for key in keys for word in key.split("-")}
        assert min(map(len, seen.values())) > 20
        assert not seen["test"] & seen["calibration"]
    sample = make("ruler-niah-single-2", plain, split="calibration")[0]
    longest = max(NEEDLE.split(context(parts(plain, sample)[0])[1]), key=len).strip()
    assert longest in " ".join(prose("calibration").split())
    assert longest not in " ".join(prose("test").split())


def test_the_random_streams_are_pinned(plain):
    # Published figures depend on these draws, which must not vary with Python's hash seed either.
    assert make("ruler-niah-single-1", plain)[0].meta["keys"] == ["wearisome-stillness"]
    assert make("ruler-niah-single-1", plain)[0].references == ("2121412",)
    assert make("ruler-vt", plain, 3000)[0].references == ("VYYXH", "BDQEK", "WJDYL", "FGBRQ", "MQVZZ")
    assert make("ruler-cwe", plain, 3000)[0].references[:3] == ("seminary", "epicurism", "humane")
    assert make("ruler-fwe", plain, 3000)[0].references == ("llmpxn", "jieozv", "rmrnuv")
    assert name(random.Random(1), "test") == "contemptible-movement"


@pytest.mark.parametrize(
    ("text", "score"),
    [
        (" 1234567, 7654321 and 1111111.", 0.75),
        ("12345678 7654321", 0.5),
        ("none", 0.0),
        ("", 0.0),
        ("1234567 7654321 1111111 ABC", 1.0),
        ("1234567 7654321 1111111 xabcx", 1.0),
    ],
)
def test_the_score_is_the_share_of_references_found(text, score):
    """RULER's string_match_all: case ignored, also inside a longer word."""
    sample = Sample((), (), (), "", {}, ("1234567", "7654321", "1111111", "AbC"))
    for task in SYNTHETIC:
        assert TASKS[task].score(sample, text) == score


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (RulerNeedles, {"hay": "essays"}, "hay='essays' is unknown. Did you mean 'essay'"),
        (RulerNeedles, {"key_type": "word"}, "key_type='word' is unknown. Did you mean 'words'"),
        (RulerNeedles, {"value_type": "uuid"}, "value_type='uuid' is unknown"),
        (RulerNeedles, {"keys": 0}, "keys=0 leaves nothing to find"),
        (RulerNeedles, {"queries": 0}, "queries=0 leaves nothing"),
        (RulerNeedles, {"values": 0}, "values=0 leaves nothing"),
        (RulerNeedles, {"values": 11, "queries": 4}, "44 needles .* use 40 or fewer"),
        (RulerVariables, {"chains": 0}, "chains=0 leaves nothing to track"),
        (RulerVariables, {"hops": 0}, "hops=0 leaves nothing to track"),
        (RulerCommonWords, {"common": 20}, "common=20 is out of range: use 1 to 19"),
        (RulerCommonWords, {"times": 3}, "times=3 must exceed uncommon_times=3"),
        (RulerFrequentWords, {"alpha": 1.0}, "alpha=1.0: such frequencies have no sum"),
    ],
)
def test_options_that_make_no_sample(task, options, message):
    with pytest.raises(ValueError, match=message):
        task(**options)


def test_words_as_values_and_numbers_as_keys(plain):
    task = RulerNeedles(hay="essay", key_type="numbers", value_type="words", keys=2)
    sample = task.samples(plain, length=1000, count=1, seed=0)[0]
    found = NEEDLE.findall(parts(plain, sample)[0])
    assert all(PATTERNS["numbers"].fullmatch(key) and PATTERNS["words"].fullmatch(value) for _, key, value in found)
    assert "A special magic word is hidden" in parts(plain, sample)[0]
