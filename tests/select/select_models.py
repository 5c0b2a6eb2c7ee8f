"""Models, samples and problems for the tests of selection."""

import torch

from families import tiny_model
from swaa.select import Problem, Scorer
from swaa.tasks import Sample

PROMPT, VOCABULARY = 60, 101


def planted(layers, depth=5):
    """A tiny model in which the attention of these layers alone does anything: only they can miss what slides."""
    model = tiny_model(num_hidden_layers=depth, vocab_size=VOCABULARY)
    with torch.no_grad():
        for number, layer in enumerate(model.model.layers):
            if number not in layers:
                layer.self_attn.o_proj.weight.zero_()
    return model


def planted_heads(heads, depth=5):
    """As `planted`, but of these KV heads (pairs of layer and head) alone."""
    model = tiny_model(num_hidden_layers=depth, vocab_size=VOCABULARY)
    config = model.config
    size = config.hidden_size // config.num_key_value_heads
    with torch.no_grad():
        for number, layer in enumerate(model.model.layers):
            for head in range(config.num_key_value_heads):
                if (number, head) not in heads:
                    layer.self_attn.o_proj.weight[:, head * size : (head + 1) * size].zero_()
    return model


def own_answers(model, count=6, answer=3):
    """Samples whose gold answers are what the model says under full attention: no mask can do better by much."""
    generator = torch.Generator().manual_seed(5)
    samples = []
    for number in range(count):
        prompt = torch.randint(3, VOCABULARY, (1, PROMPT + number), generator=generator)
        ids = prompt
        with torch.no_grad():
            for _ in range(answer):
                ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
        rows = ids[0].tolist()
        samples.append(Sample(tuple(rows[:-answer]), (), tuple(rows[-answer:]), "?", {"index": number}))
    return samples


def scorer(model, samples, **options):
    return Scorer(model, _Decoder(), samples, **options)


class _Decoder:
    """The tokens of random prompts are no text."""

    def decode(self, ids):
        return " ".join(map(str, ids.tolist()))


class TableProblem(Problem):
    """A problem whose NLL is a function of the set of full layers: no model, only the search."""

    def __init__(self, depth, function, samples=4):
        self.depth, self.function, self.asked, self.unit = depth, function, {}, "layers"
        self.scorer = type("Samples", (), {"samples": [None] * samples})()

    @property
    def units(self):
        return tuple(range(self.depth))

    def nll(self, sets, *, first=None, text=""):
        return [self.function(frozenset(layers)) for layers in sets]
