"""Examples of known turns, a tiny tokenizer, and what the tests of fine-tuning compare with."""

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch.nn.functional import cross_entropy
from transformers import DynamicCache, PreTrainedTokenizerFast

from families import reference, tiny_model
from swaa.train import Example
from swaa.train.collator import NO_LABEL

SPECIAL = ["<bos>", "<eos>", "<|im_start|>", "<|im_end|>", "<|eot_id|>"]
VOCABULARY = SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet())
# A chat template, as Qwen's but for what it says by itself.
CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nYou are Tiny.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer(template=None):
    """A tokenizer whose tokens are bytes."""
    backend = Tokenizer(BPE(vocab={token: i for i, token in enumerate(VOCABULARY)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<eos>"}
    made = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    made.chat_template = template
    return made


class Conversation:
    """Random tokens in turns of known lengths.

    Args:
        turns: tokens of the prompt and of the answer of each turn.
        seed: of the tokens.
    """

    def __init__(self, *turns, seed=0):
        self.turns = turns
        generator = torch.Generator().manual_seed(seed)
        length = sum(map(sum, turns))
        self.ids = torch.randint(3, 101, (1, length), generator=generator)
        flags = [flag for prompt, answer in turns for flag in [False] * prompt + [True] * answer]
        self.example = Example(tuple(self.ids[0].tolist()), tuple(flags))

    @torch.no_grad()
    def inference(self, model):
        """Logits of all rows but the last, as a chat computes them: a prompt in one call, then token by token."""
        cache, logits, fed, end = DynamicCache(config=model.config), [], 0, 0
        for prompt, answer in self.turns:
            end += prompt
            pieces = [self.ids[:, fed:end], *self.ids[:, end : end + answer - 1].split(1, dim=1)]
            for piece in pieces:
                if piece.shape[1]:
                    logits.append(model(piece, past_key_values=cache, use_cache=True, prompt_length=end).logits)
            end += answer
            fed = end - 1
        return torch.cat(logits, dim=1)[0]

    def dense_rows(self):
        """Flags of the rows of generated tokens: the answers, but for the last token of each."""
        flags = [x for prompt, answer in self.turns for x in [0] * prompt + [1] * (answer - 1) + [0]]
        return torch.tensor([flags], dtype=torch.bool)

    def labels(self):
        """The answers' tokens, and -100 elsewhere."""
        flags = torch.tensor([[x for p, a in self.turns for x in [0] * p + [1] * a]]).bool()
        return torch.where(flags, self.ids, NO_LABEL)


def reference_gradients(conversations, config, family="llama", **changes):
    """Gradients of the summed loss on the answers, each conversation alone, under explicit 4-D masks."""
    total = {}
    for conversation in conversations:
        model = tiny_model(family, attn_implementation="eager", **changes)
        reference(model, config, {"dense_rows": conversation.dense_rows()})
        logits = model(conversation.ids, use_cache=False).logits
        labels = conversation.labels()[:, 1:].flatten()
        cross_entropy(logits[:, :-1].flatten(0, 1), labels, ignore_index=NO_LABEL, reduction="sum").backward()
        for name, parameter in model.named_parameters():
            total[name] = total.get(name, 0) + parameter.grad
    return total


class Text:
    """Random tokens that nobody answers; the same properties as a `Conversation`."""

    def __init__(self, length, seed=0):
        self.ids = torch.randint(3, 101, (1, length), generator=torch.Generator().manual_seed(seed))
        self.example = Example(tuple(self.ids[0].tolist()), (False, *[True] * (length - 1)), prose=True)

    def dense_rows(self):
        """No row is that of a generated token."""
        return torch.zeros(self.ids.shape, dtype=torch.bool)

    def labels(self):
        """All tokens but the first."""
        return torch.cat([torch.full((1, 1), NO_LABEL), self.ids[:, 1:]], dim=1)
