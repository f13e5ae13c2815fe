"""Where a decoder says that branches are exact, their logits are to the last bit those of one token alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import edgevlm
from edgevlm.errors import ContextError, InferenceError, InputError
from edgevlm.runtimes.llama_cpp.batch_rounding import MAX_ROWS, rounds_alike
from edgevlm.runtimes.llama_cpp.decoder import LlamaCppDecoder
from edgevlm.runtimes.protocols import Place

FILE = Path(edgevlm.__file__).parent / "models" / "edgevlm-nano" / "decoder.q8_0.gguf"
VOCABULARY = 2048
CONTEXT = 2048


def load(threads: int) -> LlamaCppDecoder:
    return LlamaCppDecoder(FILE, context_length=CONTEXT, threads=threads, try_file=False)


@pytest.fixture(scope="module")
def decoder() -> Iterator[LlamaCppDecoder]:
    opened = load(1)
    yield opened
    opened.close()


def some_tokens(count: int, seed: int) -> list[int]:
    found: list[int] = np.random.default_rng(seed).integers(5, VOCABULARY, count).tolist()
    return found


def prefill(decoder: LlamaCppDecoder, tokens: list[int]) -> Place:
    """Decode a prompt as embeddings, as images are, after nothing."""
    decoder.truncate(Place())
    positions = np.arange(len(tokens), dtype=np.int32)
    decoder.decode_embeddings(decoder.embed(tokens), positions, logits=False)
    return Place(len(tokens), len(tokens))


def go_on(
    decoder: LlamaCppDecoder, place: Place, text: list[int], tokens: list[int]
) -> list[NDArray[np.float32]]:
    """Decode a text at once, then single tokens; return the logits after each call."""
    found = []
    for part in (text, *([token] for token in tokens)):
        positions = np.arange(place.position, place.position + len(part), dtype=np.int32)
        decoder.decode_tokens(part, positions, logits=True)
        place = place.after(len(part))
        found.append(decoder.logits())
    return found


@pytest.mark.parametrize("length", [88, 230])
def test_branches_of_several_prompts(decoder: LlamaCppDecoder, length: int) -> None:
    check_prompts(decoder, length, seeds=[1, 2, 3])


def test_threads() -> None:
    """With several threads, attention of a single token over many entries is split between them."""
    decoder = load(2)
    check_prompts(decoder, 220, seeds=[1])
    decoder.close()


def check_prompts(decoder: LlamaCppDecoder, length: int, seeds: list[int]) -> None:
    """Prefill and copy each prompt alone, decode their answers together, and compare; two share a prompt."""
    count = 2 + len(seeds)
    prompts = [some_tokens(length, seed) for seed in (0, 0, *seeds)]
    texts = [some_tokens(4 + seed, 10 + seed) for seed in range(count)]
    answers = [some_tokens(3 + 7 * seed, 20 + seed) for seed in range(count)]
    alone = []
    for prompt, text, answer in zip(prompts, texts, answers, strict=True):
        place = prefill(decoder, prompt)
        alone.append(go_on(decoder, place, text, answer))
    copies = []
    for prompt in prompts[1:-1]:
        place = prefill(decoder, prompt)
        copies.append(decoder.save())
    prefill(decoder, prompts[-1])
    first = decoder.branch_of_copy(copies[0], place)
    branches = [first, decoder.branch(first)]
    branches += [decoder.branch_of_copy(copy, place) for copy in copies[1:]]
    branches.append(decoder.branch())
    exact = [decoder.is_exact(branch, 4) for branch in branches]
    order = [branch for branch, text in zip(branches, texts, strict=True) for _ in text]
    ends = np.cumsum([len(text) for text in texts]) - 1
    wanted = np.isin(np.arange(len(order)), ends)
    rows = decoder.decode_branches(order, [token for text in texts for token in text], wanted)
    found = [[row.copy()] for row in rows]
    compared = sum(exact)
    for index, row in enumerate(rows):
        assert not exact[index] or np.array_equal(row, alone[index][0])
    running = list(range(count))
    while running:
        exact = [decoder.is_exact(branches[index], 1) for index in running]
        at = len(found[running[0]]) - 1
        rows = decoder.decode_branches(
            [branches[index] for index in running], [answers[index][at] for index in running]
        ).copy()
        for index, row, same in zip(list(running), rows, exact, strict=True):
            found[index].append(row)
            assert not same or np.array_equal(row, alone[index][at + 1])
            assert np.allclose(row, alone[index][at + 1], atol=1.0)
            compared += same
            if at + 1 == len(answers[index]):
                running.remove(index)
                decoder.drop(branches[index])
    assert decoder.room(0) == CONTEXT
    assert compared or not decoder._rounds_alike


def test_exactness_ends_where_entries_take_freed_cells(decoder: LlamaCppDecoder) -> None:
    prefill(decoder, some_tokens(20, 0))
    first, second, third = (decoder.branch() for _ in range(3))
    before = decoder.is_exact(first, 1)
    decoder.decode_branches([first] * 10, some_tokens(10, 1))
    decoder.drop(first)  # its cells stay, as long as they are not needed
    assert decoder.room(20) == CONTEXT - 20
    assert decoder.is_exact(second, 1) == before
    none = np.zeros(500, np.bool_)
    size = 90  # shorter than any batch
    for _ in range(22):
        decoder.decode_branches([second] * size, some_tokens(size, 2), none[:size])
    assert decoder.is_exact(third, 1) == before
    decoder.decode_branches([second] * 40, some_tokens(40, 3), none[:40])
    assert not decoder.is_exact(third, 1)
    decoder.drop(second)
    decoder.drop(third)
    assert decoder.is_exact(decoder.branch(), 1) == before
    decoder.drop(1)


def test_exactness_ends_with_a_cut_and_with_a_prompt_beside_branches(
    decoder: LlamaCppDecoder,
) -> None:
    place = prefill(decoder, some_tokens(20, 0))
    branch = decoder.branch()
    decoder.decode_branches([branch] * 2, [7, 8])
    decoder.cut_branch(branch, 1)
    assert not decoder.is_exact(branch, 1)
    decoder.drop(branch)
    branch = decoder.branch()
    go_on(decoder, place, [9], [])
    assert not decoder.is_exact(branch, 1)
    decoder.drop(branch)
    branch = decoder.branch()  # of cells that are not in the order of a new prompt
    assert not decoder.is_exact(branch, 1)
    decoder.drop(branch)


def test_refuses_wrong_copies(decoder: LlamaCppDecoder) -> None:
    place = prefill(decoder, some_tokens(20, 0))
    copy = decoder.save()
    with pytest.raises(InferenceError, match="could not restore"):
        decoder.branch_of_copy(copy[:50], place)
    branch = decoder.branch_of_copy(copy, place)
    decoder.decode_branches([branch], [7])
    with pytest.raises(InputError, match="1 tokens of its own"):
        decoder.branch(branch)
    decoder.drop(branch)
    place = prefill(decoder, some_tokens(1500, 1))
    copy = decoder.save()
    with pytest.raises(ContextError, match="1500 entries after 1500"):
        decoder.branch_of_copy(copy, place)
    assert decoder.room(0) == CONTEXT


@pytest.mark.parametrize("wrong", [None, 2, 32, MAX_ROWS])
def test_every_size_counts(wrong: int | None) -> None:
    """A decoder that rounds batches of one size otherwise is found."""

    def decode(
        sequences: Sequence[int], ids: Sequence[int], positions: Sequence[int], wanted: int
    ) -> NDArray[np.float32]:
        assert len(sequences) == len(ids) == len(positions)
        assert (sequences[wanted], ids[wanted]) == (0, (7919 * positions[wanted] + 101) % 500)
        return np.full(5, 1 + 1e-7 * (len(ids) == wrong), np.float32)

    assert rounds_alike(decode, 500) == (wrong is None)


def test_nan_is_not_exact() -> None:
    nan = np.full(3, np.nan, np.float32)

    def decode(*_: Any) -> NDArray[np.float32]:
        return nan

    assert not rounds_alike(decode, 500)
