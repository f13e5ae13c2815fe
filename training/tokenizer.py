"""Builds the tokenizer and the processor of edgevlm-nano, laid out as SmolVLM's.

Covered: byte-level BPE with digits split one by one (llama.cpp's `smollm` pre-tokenizer), SmolVLM's
special tokens and chat template, and the processor files that `AutoProcessor` reads. Not covered:
video, image splitting (the special tokens for it exist, the model has never seen them).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Idefics3Processor, PreTrainedTokenizerFast
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from training import questions, scenes
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
User: Hello! Assistant: Hello! Show me a picture and ask me about the shapes in it.
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


def _corpus() -> Iterator[str]:
    rng = np.random.default_rng(20261121)
    for _ in range(2000):
        scene = scenes.sample(rng)
        for type_ in questions.TYPES:
            question = questions.ask(type_, scene, rng)
            if question is not None:
                yield f"User: {question.text}"
                yield question.text
                yield f"Assistant: {question.answer}"
    for _ in range(20):
        yield ENGLISH


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Train the vocabulary; the same on every run."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(IMAGE) - 1,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in FIRST],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(_corpus(), trainer)
    room = VOCABULARY - bpe.get_vocab_size() - len(IMAGE) - 1
    reserved = [f"<|reserved_special_token_{i}|>" for i in range(room)]
    late = [AddedToken(t, special=True, normalized=False) for t in [*IMAGE, *reserved, END]]
    bpe.add_special_tokens(late)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|im_start|>",
        eos_token=END,
        unk_token="<|endoftext|>",
        pad_token="<|im_end|>",
        additional_special_tokens=[*IMAGE, END],
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
        padding_side="left",
    )
    if len(tokenizer) != VOCABULARY:
        raise RuntimeError(f"the tokenizer has {len(tokenizer)} entries, not {VOCABULARY}")
    return tokenizer


def build_processor() -> Idefics3Processor:
    """Tokenizer, chat template and picture preparation: one square tile, no splitting.

    `Idefics3Processor` does for still pictures what `SmolVLMProcessor` does, and loads where
    torchvision and num2words, which the latter wants for video, are not installed.
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
