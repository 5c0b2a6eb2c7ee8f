"""What `finetune.py` trains on: questions about facts in a text, instructions for the model itself, and plain prose.

The prose is *Emma*, the words are those of the calibration split: no text, key or wording of a task in `swaa.tasks` is
used for testing and here.
"""

import random
from dataclasses import dataclass

from swaa.prose import prose, sentence_ends
from swaa.tasks import TASKS
from swaa.tasks.words import word_pairs

# English prose, and the facts in it, have about so many characters a token; a little less keeps lengths in bounds.
CHARS = 4.1
FIRST = (
    "Ada Boris Carla Dmitri Elif Farid Greta Hiro Ines Jonas Kofi Lucia Milan Nadia Omar Petra Quentin Rosa Stefan "
    "Tala Ursula Viktor Wanda Xavier Yusuf Zoe"
)
LAST = (
    "Abbott Bianchi Carver Duarte Eriksen Fischer Gallo Haddad Ito Jansen Kowalski Lindqvist Moreau Novak Okafor Pires "
    "Quist Romero Sato Tanaka Umarov Vogel Weber Yilmaz Zhang"
)
TOWNS = (
    "Lisbon Oslo Nairobi Quito Hanoi Tunis Perth Riga Cusco Bergen Porto Lagos Osaka Turin Malmo Dakar Davos Salem "
    "Cardiff Ghent Tampere Izmir Lahore Minsk"
)
MONTHS = "January February March April May June July August September October November December"
SYSTEMS = (
    "You are a careful assistant.",
    "You answer questions about documents.",
    "Answer briefly and exactly.",
    "You are a librarian who knows every page of the text at hand.",
    "Follow the user's instructions.",
)
OPENINGS = (
    "Please go through this document.",
    "Here is a long passage. I will ask you about details in it.",
    "Below you find a manuscript with some remarks that do not belong to the story.",
    "Study what follows.",
    "I copied this from an old file. Keep its details in mind.",
    "The next pages mix a story with notes.",
    "Text:",
    "You are given an excerpt. Take note of every detail, however small.",
)


@dataclass(frozen=True)
class Form:
    """A kind of fact: what it says of `{key}`, how it is asked for, which keys and values it has."""

    statement: str
    questions: tuple[str, ...]
    key: str
    value: str


FORMS = (
    Form("The vault of the {key} opens with {value}.", ("What opens the vault of the {key}?",), "thing", "digits"),
    Form("{key} can be reached by phone at {value}.", ("Which phone number does {key} have?",), "person", "phone"),
    Form("{key} lives in {value}.", ("Where does {key} live?", "In which town does {key} live?"), "person", "town"),
    Form("The invoice from {key} amounts to {value} dollars.", ("How much does {key} charge?",), "person", "digits"),
    Form("The serial number of the {key} reads {value}.", ("What is the {key}'s serial number?",), "thing", "mixed"),
    Form("{key} was born on {value}.", ("When was {key} born?", "What is the birthday of {key}?"), "person", "date"),
    Form("Note: {key} = {value}.", ("{key} = ?", "What does the note say about {key}?"), "code", "digits"),
    Form("The train to {key} leaves at {value}.", ("When does the train to {key} leave?",), "town", "time"),
    Form("Whoever asks for the {key} must say {value}.", ("What must one say to get the {key}?",), "thing", "thing"),
    Form("Locker {key} belongs to {value}.", ("Who owns locker {key}?", "Whose is locker {key}?"), "code", "person"),
    Form("There are exactly {value} copies of the {key}.", ("How many copies has the {key}?",), "thing", "digits"),
    Form("The license plate of {key} is {value}.", ("Tell me the license plate of {key}.",), "person", "mixed"),
    Form("The {key} was sold to {value}.", ("To whom was the {key} sold?", "Who bought the {key}?"), "thing", "person"),
    Form("Remember that the ID of the {key} is {value}.", ("Which ID has the {key}?",), "thing", "digits"),
    Form("In {key} the secret word is {value}.", ("What is the secret word in {key}?",), "town", "thing"),
    Form("{key} keeps account {value} at the bank.", ("Which account does {key} keep?",), "person", "digits"),
)  # fmt: skip

TASKS_ON_TEXT = (
    "Summarise this passage in {n} sentences.",
    "List the people who are named in this text.",
    "Continue the text in the same style.",
    "Rewrite this passage in plain modern English.",
    "What is the mood of this text? Explain with examples from it.",
    "Write {n} questions that a teacher might ask about this passage.",
    "Explain to a child what happens here.",
    "Which places are mentioned in the text above?",
    "Write a letter in which one of the characters tells a friend about these events.",
    "Turn this passage into a scene of a play.",
    "Give the passage a title, and say why it fits.",
    "What do we learn about the main person in this passage?",
    "Pick the most important sentence of this text, quote it, and say why you chose it.",
    "Describe how the people in this text feel about each other.",
    "Is the narrator fair? Give your opinion in a few sentences.",
    "Make a list of {n} facts that are stated in this text.",
)
TASKS_ALONE = (
    "Explain {topic} to somebody who has never heard of it.",
    "Write a short story in which {topic} plays a part.",
    "Give me {n} tips about {topic}.",
    "Write a poem about {topic}.",
    "What are the advantages and disadvantages of {topic}?",
    "Write an essay about {topic}.",
    "Tell me about the history of {topic}.",
    "Write a dialogue between two friends about {topic}.",
    "Make a plan with {n} steps for a beginner in {topic}.",
    "How does {topic} work? Go into detail.",
)
TOPICS = (
    "gardening|the weather|volcanoes|photosynthesis|a football match|baking bread|the Roman Empire|"
    "learning to swim|electric cars|chess|the moon|public libraries|a trip to the mountains|"
    "Python programming|sorting a list of numbers|fractions|healthy food|saving money|"
    "the printing press|bees|music theory|writing a novel|black holes|a job interview|recycling|"
    "earthquakes|painting with watercolours|the human heart|a lost dog|world trade|democracy|"
    "vaccines|databases|the French Revolution|a rainy day|time management|the ocean|cooking rice|"
    "bridges|prime numbers|the internet|sleep|a birthday party|solar power|tea|woodworking|"
    "the stock market|poetry|dinosaurs|friendship|learning a language|maps"
)


class Words:
    """Keys and values that no test task uses."""

    def __init__(self, tokenizer):
        tests = [TASKS["needle"].samples(tokenizer, length=512, count=400, seed=seed, split="test") for seed in (0, 1)]
        taken = {word for samples in tests for sample in samples for word in sample.meta["key"].split()}
        self.adjectives, self.nouns = ([w for w in words if w not in taken] for words in word_pairs("calibration"))

    def draw(self, rng, kind):
        if kind == "digits":
            digits = rng.randint(3, 9)
            return str(rng.randrange(10 ** (digits - 1), 10**digits))
        if kind == "thing":
            return f"{rng.choice(self.adjectives)} {rng.choice(self.nouns)}"
        if kind == "person":
            return f"{rng.choice(FIRST.split())} {rng.choice(LAST.split())}"
        if kind == "code":
            return "".join(rng.choices("ABCDEFGHJKLMNPRSTUVWXYZ", k=2)) + str(rng.randrange(100, 1000))
        if kind == "mixed":
            return "-".join("".join(rng.choices("ABCDEFGHJKLMNPRSTUVWXYZ0123456789", k=4)) for _ in range(2))
        if kind == "phone":
            return " ".join(str(rng.randrange(100, 1000)) for _ in range(3))
        if kind == "date":
            return f"{rng.choice(MONTHS.split())} {rng.randint(1, 28)}, {rng.randint(1850, 2020)}"
        if kind == "time":
            return f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}"
        return rng.choice(TOWNS.split())


def passage(rng, chars):
    """A part of the book that begins with a sentence."""
    book = prose("calibration")
    start = rng.randrange(len(book) - chars - 2000)
    text = book[start : start + chars + 2000]
    begin = next((end for end in sentence_ends(text)[1:] if end < 2000), 0)
    return text[begin : begin + chars].strip()


def tokens_between(rng, shortest, longest):
    """Short ones as often as long ones, octave by octave."""
    return int(shortest * (longest / shortest) ** rng.random())


def retrieval(rng, words, shortest, longest):
    """A conversation about facts in a text: several questions, so that a pass over a long text teaches more."""
    chars = int(CHARS * tokens_between(rng, shortest, longest))
    kind = rng.random()
    if kind < 0.12:
        return _conversation(rng, *_quotes(rng, chars))
    if kind < 0.22:
        return _conversation(rng, *_table(rng, words, chars))
    # Mostly several facts of one form, which are hard to tell apart; else of any.
    forms = [rng.choice(FORMS)] if rng.random() < 0.7 else list(FORMS)
    facts = {}
    for _ in range(rng.choice((1, 2, 4, 6, 8, 12))):
        form = rng.choice(forms)
        key = words.draw(rng, form.key)
        if (form, key) not in facts and not any(known == key for _, known in facts):
            facts[form, key] = words.draw(rng, form.value)
    said = [form.statement.format(key=key, value=value) for (form, key), value in facts.items()]
    text = passage(rng, max(chars - sum(map(len, said)), 400))
    ends = sentence_ends(text)
    # Mostly far from the questions.
    places = sorted((rng.choice(ends[: max(int(0.8 * len(ends)), 1)]), sentence) for sentence in said)
    parts, copied = [], 0
    for place, sentence in places:
        parts += [text[copied:place], f" {sentence}" if place else f"{sentence} "]
        copied = place
    text = "".join([*parts, text[copied:]])
    style, pairs = rng.random(), []
    for form, key in rng.sample(list(facts), min(len(facts), 8)):
        value = facts[form, key]
        whole = form.statement.format(key=key, value=value)
        answer = whole if style < 0.7 else value if style < 0.85 else f"The answer is {value}."
        pairs.append((rng.choice(form.questions).format(key=key), answer))
    return _conversation(rng, text, pairs)


def broad(rng, words, shortest, longest):
    """A prompt that the model is to answer itself: about a passage, or about a topic."""
    number = rng.randint(3, 6)
    if rng.random() < 0.4:
        topic = rng.choice(TOPICS.split("|")) if rng.random() < 0.7 else f"the {words.draw(rng, 'thing')}"
        return {"prompt": rng.choice(TASKS_ALONE).format(topic=topic, n=number)}
    text = passage(rng, int(CHARS * tokens_between(rng, shortest // 2, longest)))
    task = rng.choice(TASKS_ON_TEXT).format(n=number)
    return {"prompt": f"{text}\n\n{task}" if rng.random() < 0.7 else f"{task}\n\n{text}"}


def plain(rng, words, shortest, longest):
    """A part of the book, cut at any word: every token of it is trained."""
    text = passage(rng, int(CHARS * tokens_between(rng, 2 * shortest, longest)))
    return {"text": text[text.index(" ", rng.randrange(400)) + 1 :]}


def _conversation(rng, text, pairs):
    opening = rng.choice(OPENINGS)
    turns = [{"role": "system", "content": rng.choice(SYSTEMS)}] if rng.random() < 0.5 else []
    for number, (question, answer) in enumerate(pairs):
        asked = question if number else f"{opening}\n\n{text}\n\n{question}"
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return {"messages": turns}


def _quotes(rng, chars):
    """The text, and beginnings of sentences with what follows them."""
    text = passage(rng, chars)
    begun = [text[end:].split("\n")[0].split() for end in sentence_ends(text)[:-1]]
    begun = [listed for listed in begun if len(listed) > 20]
    pairs = []
    for listed in rng.sample(begun, min(len(begun), 4)):
        shown, told = rng.randint(4, 8), rng.randint(8, 30)
        start, rest = " ".join(listed[:shown]), " ".join(listed[shown : shown + told])
        pairs.append((f"How does the sentence go on that starts with “{start}”?", f"{start} {rest}"))
    return (text, pairs) if pairs else _quotes(rng, chars)


def _table(rng, words, chars):
    """Lines with a name and a number each, and some of the names."""
    kind, value = rng.choice((("thing", "digits"), ("person", "phone"), ("code", "town"), ("person", "mixed")))
    joint = rng.choice((": ", " -> ", ", ", " | "))
    rows, size = {}, 0
    while size < chars / 2.5:  # digits are a token each
        key = words.draw(rng, kind)
        rows.setdefault(key, words.draw(rng, value))
        size += len(key) + len(rows[key]) + 3
    asked = rng.sample(list(rows), min(len(rows), 8))
    return "\n".join(f"{k}{joint}{v}" for k, v in rows.items()), [
        (f"Which entry belongs to {key}?", f"{key}{joint}{rows[key]}") for key in asked
    ]


MAKERS = {"retrieval": retrieval, "broad": broad, "prose": plain}


def make(part, tokenizer, count, shortest, longest, seed):
    """Return rows of a part of the data.

    Args:
        part: a name in `MAKERS`.
        tokenizer: of the model, to know the test's keys.
        count: how many.
        shortest: tokens of a prompt, about.
        longest: tokens of a prompt, about.
        seed: any integer.
    """
    words = Words(tokenizer)
    return [MAKERS[part](random.Random(f"finetune/{part}/{seed}/{n}"), words, shortest, longest) for n in range(count)]
