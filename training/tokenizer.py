"""Tokenizer and processor of edgevlm-nano, in the format of SmolVLM's.

The tokenizer is a byte-level BPE that splits digits one by one (llama.cpp's `smollm` pre-tokenizer), with
SmolVLM's special tokens and chat template. `AutoProcessor` reads the processor files. Latin words are single
tokens only after a space. So a printed word, which is in quotes, is spelled letter by letter. There is no
video and no image splitting: the special tokens for it exist, but training never uses them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import Idefics3Processor, PreTrainedTokenizerFast
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from edgevlm.scenes import composition, drawings, pairs, questions
from training.dialogues import NO_IMAGE, SMALL_TALK
from training.model import LONGEST_EDGE, TILE, TOKENS, VOCABULARY

FIRST = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
IMAGE = [
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
    "<fake_token_around_image>",
    "<image>",
]
END = "<end_of_utterance>"

CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)

ENGLISH = """\
This is a small model that looks at a picture and answers a question about it. It runs on the \
device
itself, without a network, and the answer is ready within a moment. The picture may be wide or \
tall,
large or small, light or dark. The camera on the table shows what is in front of it: a cup, a \
book, a
window, two people and their dog. Some of them are near, others are far away; some move, some \
do not.
People ask where things are, how many there are, which of them is the largest, and what is \
behind the
door at the end of the street. They say thank you when they have heard the answer, and then \
they ask
another question about the same picture, because the first answer made them think of something \
new.
In the morning the sun comes up over the water and the sky turns from black to blue. The \
children walk
to school along the river, past the old houses with their green gardens and the trees full of \
birds.
It was a good year for the farmers; there had been enough rain, and every field was high with \
yellow
corn. Nobody knew that the winter would be so long. When the snow came they stayed at home, made a
fire, and told each other stories about the sea, about ships and islands, and about the great city
that none of them had ever seen. You should always read what is written before you write more \
of it.
If you can say it in a few words, do not use many. A number is better than a claim, and an \
example is
better than a rule, but only when both have been checked. We have been working on this for some \
time
and would like to know what you think: is it useful, is it fast enough, does it make mistakes \
that you
would not have made? Please let us know. I am sorry, I do not know. I cannot see that from \
here. There
is nothing at all in this place. Which one should I look at first? Could they come back \
tomorrow after
work? He said that she had just left. Every person has the right to an education, and to rest.
Temperature, weather, music, history, science, government, company, system, program, problem, \
service,
information, between, through, during, without, against, another, however, important, different.
"""


_RESERVED = 16  # special tokens for later use
_SPACE = "\u0120"  # how byte-level BPE writes the space
_STARTS = _SPACE + "'"  # a Latin token that begins so is never inside quotes
_LETTERS = "абвгдеёжзийклмнопрстуфхцчшщъыьэюяАБВГДЕЁЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯ"
_SCENES = 1500
_STYLE = ("noto",)  # it has all drawings; the style does not matter here
_NAME, _RUSSIAN_NAME, _FORM = 3000, 150, 20  # weights of a noun and its forms, in occurrences
# Capitalized first words of messages. They are few: their first letters also become tokens within quotes.
_FIRST_WORDS = ("User", "Assistant", "What", "Where", "Which", "How", "Is")

Pair = tuple[str, str]


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )


def _bytes(text: str) -> str:
    """Return the text as byte-level BPE writes it, one character per byte."""
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return "".join(piece for piece, _ in pieces.pre_tokenize_str(text))


def _asked() -> Iterator[questions.Question]:
    """Yield questions of every skill about random scenes, in both languages."""
    rng = np.random.default_rng(20261121)
    for i in range(_SCENES):
        layout = composition.LAYOUTS[i % len(composition.LAYOUTS)]
        scene = composition.sample(rng, layout, styles=_STYLE)
        pair = pairs.sample_pair(rng, styles=_STYLE) if i % 5 == 0 else None
        for language in questions.LANGUAGES:
            for skill in questions.SKILLS:
                if skill == "two_pictures":
                    found = None if pair is None else questions.ask_pair(pair, rng, language)
                else:
                    found = questions.ask(skill, scene, rng, language)
                if found is not None:
                    yield found


def _corpus() -> Iterator[tuple[str, int]]:
    """Yield texts as in a chat, with weights."""
    for question in _asked():
        for i, turn in enumerate(question.turns):
            yield f" {turn.question}" if i else turn.question, 1  # the first follows the image
            yield f" {turn.answer}", 1
    for language, talks in SMALL_TALK.items():
        for asked, answer in (*talks, ("", NO_IMAGE[language])):
            yield f" {asked}", 20
            yield f" {answer}", 20
    for noun in drawings.nouns().values():
        yield f" {noun.name}", _NAME
        yield f" {noun.plural}", _FORM
        yield f" {noun.russian}", _RUSSIAN_NAME
        yield f" {noun.genitive} {noun.genitive_plural}", _FORM
    for word in _FIRST_WORDS:
        yield word, _NAME
    yield ENGLISH, 4


def _is_latin(symbols: str) -> bool:
    return symbols.replace(_SPACE, "").isascii()


def _table() -> dict[tuple[str, ...], int]:
    """Return the weight of each pre-token that may merge, as a tuple of letters."""
    texts: Counter[str] = Counter()
    for text, weight in _corpus():
        texts[text] += weight
    pre_tokenizer = _pre_tokenizer()
    pieces: Counter[str] = Counter()
    for text, weight in texts.items():
        for i, (piece, _) in enumerate(pre_tokenizer.pre_tokenize_str(text)):
            known = i == 0 and piece in _FIRST_WORDS
            if known or piece[0] in _STARTS or not _is_latin(piece):
                pieces[piece] += weight
    letters = {_bytes(letter) for letter in _LETTERS}
    table = {}
    for piece, weight in pieces.items():
        symbols, rest = [], piece
        while rest:
            length = 2 if rest[:2] in letters else 1
            symbols.append(rest[:length])
            rest = rest[length:]
        table[tuple(symbols)] = weight
    return table


@cache
def _may_merge(pair: Pair) -> bool:
    """Return True if a pair may become a token.

    Latin tokens start with a space, an apostrophe or a capital letter, so never within a quoted word.
    """
    left, right = pair
    return not _is_latin(left + right) or left[0] in _STARTS or left[0].isupper()


def _merges(count: int) -> list[Pair]:
    """Return the letters of Cyrillic, then the most frequent pairs that may merge, one by one."""
    merges: list[Pair] = [(letter[0], letter[1]) for letter in map(_bytes, _LETTERS)]
    table = _table()
    words, weights = [list(symbols) for symbols in table], list(table.values())
    often: Counter[Pair] = Counter()
    where: defaultdict[Pair, set[int]] = defaultdict(set)

    def tally(word: int, sign: int) -> None:
        for pair in filter(_may_merge, pairwise(words[word])):
            often[pair] += sign * weights[word]
            where[pair].add(word)

    for word in range(len(words)):
        tally(word, 1)
    while len(merges) < count:
        most = max(often.values(), default=0)
        if most < 2:
            break
        best = max(pair for pair, times in often.items() if times == most)
        merges.append(best)
        for word in where.pop(best):
            tally(word, -1)
            words[word] = _merged(words[word], best)
            tally(word, 1)
        del often[best]
    return merges


def _merged(symbols: list[str], pair: Pair) -> list[str]:
    joined: list[str] = []
    position = 0
    while position < len(symbols):
        length = 2 if tuple(symbols[position : position + 2]) == pair else 1
        joined.append("".join(symbols[position : position + length]))
        position += length
    return joined


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Train the tokenizer; each run gives the same one."""
    late_tokens = [*IMAGE, END]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _merges(VOCABULARY - len(FIRST) - len(alphabet) - len(late_tokens) - _RESERVED)
    entries = [*FIRST, *alphabet, *(left + right for left, right in merges)]
    bpe = Tokenizer(models.BPE({entry: i for i, entry in enumerate(entries)}, merges))
    bpe.pre_tokenizer = _pre_tokenizer()
    bpe.decoder = decoders.ByteLevel()
    room = VOCABULARY - len(entries) - len(late_tokens)
    reserved = [f"<|reserved_special_token_{i}|>" for i in range(room)]
    special = [*FIRST, *IMAGE, *reserved, END]
    bpe.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|im_start|>",
        eos_token=END,
        unk_token="<|endoftext|>",
        pad_token="<|im_end|>",
        additional_special_tokens=[*IMAGE, END],
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
        padding_side="left",
    )
    if len(tokenizer) != VOCABULARY or len(set(entries)) != len(entries):
        raise RuntimeError(f"the tokenizer has {len(tokenizer)} entries, not {VOCABULARY}")
    return tokenizer


def build_processor() -> Idefics3Processor:
    """Return the processor: tokenizer, chat template and image preparation (one square tile).

    For images, `Idefics3Processor` does the same as `SmolVLMProcessor`, but it does not need torchvision
    and num2words, which the latter needs for video.
    """
    return Idefics3Processor(
        image_processor=SmolVLMImageProcessorPil(
            do_image_splitting=False,
            size={"longest_edge": LONGEST_EDGE},
            max_image_size={"longest_edge": TILE},
            image_mean=[0.5, 0.5, 0.5],
            image_std=[0.5, 0.5, 0.5],
        ),
        tokenizer=build_tokenizer(),
        image_seq_len=TOKENS,
        chat_template=CHAT_TEMPLATE,
    )


def save_processor(processor: Idefics3Processor, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    processor.save_pretrained(folder)
