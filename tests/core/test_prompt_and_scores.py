"""`VLM.prompt` and `VLM.score` agree with the model's own requests and logits."""

from __future__ import annotations

import numpy as np
import pytest

from edgevlm import VLM, ContextError, InputError, Video
from edgevlm.inputs.images import load_image
from edgevlm.inputs.prompt import user_message
from edgevlm.inputs.tiling import Detail
from edgevlm.results import PromptText, PromptTile
from tests.conftest import picture
from tests.support.oracle import BUNDLES

QUESTION = "What is this?"


def asked(image: object, question: str = QUESTION) -> list[dict[str, object]]:
    parts = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    return [{"role": "user", "content": parts}]


@pytest.mark.parametrize("detail", ["low", "high"])
def test_a_prompt_is_what_the_model_is_given(smolvlm: VLM, detail: Detail) -> None:
    image = picture(0, 300, 200)
    prompt = smolvlm.prompt(asked(image), detail=detail)
    stats = smolvlm.ask(image, QUESTION, max_tokens=1, detail=detail).stats
    tiles = [part for part in prompt.parts if isinstance(part, PromptTile)]
    assert prompt.tokens == stats.prompt_tokens
    assert len(tiles) == stats.encoded_tiles + stats.cached_tiles
    tile_size = smolvlm.manifest.image.tile_size
    assert tile_size is not None
    assert {tile.pixels.shape for tile in tiles} == {(*tile_size, 3)}
    assert [tile.tile for tile in tiles] == list(range(len(tiles)))
    grid = [(tile.row, tile.column) for tile in tiles if tile.row]
    assert grid == sorted(grid) and len(grid) in (0, len(tiles) - 1)
    assert (tiles[-1].row, tiles[-1].column) == (0, 0)


def test_the_text_of_a_prompt_has_its_special_tokens(smolvlm: VLM) -> None:
    question = "Is <image> seven characters?"
    prompt = smolvlm.prompt(asked(picture(0), question))
    text = "".join(part.text for part in prompt.parts if isinstance(part, PromptText))
    assert text.startswith("<|im_start|>") and question in text
    assert "<end_of_utterance>" in text


@pytest.mark.parametrize("family", ["smolvlm", "paligemma"])
def test_scores_are_the_models_own_probabilities(family: str) -> None:
    """The reference is logits under teacher forcing, without caches, for each tokenization."""
    choices = ["red", "a cat", "12"]
    image = picture(0)
    with VLM.from_pretrained(BUNDLES / family, threads=1) as vlm:
        engine = vlm._engine
        prepared = engine.process_image(load_image(image))
        ends = sorted(vlm.manifest.prompt.end_token_ids)
        expected = []
        for choice in choices:
            total = 0.0
            for tokens in {tuple(engine._decoder.tokenize(start + choice)) for start in ("", " ")}:
                logits = engine.logits([user_message(QUESTION, 1)], [prepared], [*tokens, ends[0]])
                logits = logits.astype(np.float64)
                likely = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
                steps = [likely[at, token] for at, token in enumerate(tokens)]
                total += np.prod(steps) * likely[len(tokens), ends].sum()
            expected.append(total)
        vlm.ask(image, "Something else?", max_tokens=3)
        for _ in range(2):  # the second time from the caches
            scores = vlm.score(image, QUESTION, choices)
            assert [score.text for score in scores] == choices
            found = np.exp([score.logprob for score in scores])
            np.testing.assert_allclose(found, expected, rtol=2e-3)
            shares = np.array(expected) / np.sum(expected)
            np.testing.assert_allclose([score.probability for score in scores], shares, rtol=2e-3)


def test_scoring_leaves_answers_as_they_were(smolvlm: VLM) -> None:
    image = picture(1)
    before = smolvlm.ask(image, QUESTION, max_tokens=12).token_ids
    smolvlm.score(image, QUESTION, ["red", "blue and green"])
    assert smolvlm.ask(image, QUESTION, max_tokens=12).token_ids == before


def test_the_likeliest_choice_is_what_a_trained_model_answers() -> None:
    with VLM.from_pretrained("edgevlm-nano", threads=1) as vlm:
        scores = vlm.score("examples/square.png", "What color is it?", ["red", "green", "blue"])
        best = max(scores, key=lambda score: score.probability)
        assert best.text == "green" and best.probability > 0.9


def test_choices_that_cannot_be_scored(smolvlm: VLM) -> None:
    for choices in ([], ["a", ""], ["a", " "], "abc"):
        with pytest.raises(InputError, match="choices must be several texts"):
            smolvlm.score(None, QUESTION, choices)
    for choices in (["a", "a"], ["a", " a"]):  # "a" is scored with and without a space before it
        with pytest.raises(InputError, match="choices must differ"):
            smolvlm.score(None, QUESTION, choices)
    with pytest.raises(ContextError, match="the longest choice"):
        smolvlm.score(None, QUESTION, ["word " * 5000])


def test_a_choice_is_the_likeliest_score(smolvlm: VLM) -> None:
    labels = ["red", "a cat", "a cat on a mat", "12"]
    images = [picture(0), picture(1)]
    scores = smolvlm.score(images, QUESTION, labels)
    choice = smolvlm.choose(images, QUESTION, labels)
    # the formula of the documentation, written out
    likely = np.exp([score.logprob for score in scores])
    expected = likely / likely.sum()
    assert list(choice.probabilities) == labels
    np.testing.assert_allclose(list(choice.probabilities.values()), expected, rtol=1e-6)
    assert choice.label == labels[int(expected.argmax())]
    second, best = np.sort(expected)[-2:]
    assert choice.margin == pytest.approx(best - second)


def test_one_choice_is_none(smolvlm: VLM) -> None:
    with pytest.raises(InputError, match="at least two texts"):
        smolvlm.choose("there is no such image", QUESTION, ["red"])


def test_a_video_for_a_model_that_takes_none(smolvlm: VLM) -> None:
    video = Video([picture(0), picture(1)], fps=2)
    with pytest.raises(InputError, match="video"):
        smolvlm.choose(video, QUESTION, ["yes", "no"])
    with pytest.raises(InputError, match="video"):
        smolvlm.extract(video, QUESTION, bool)


def test_loading_tells_its_steps() -> None:
    told: list[tuple[float, str]] = []
    with VLM.from_pretrained(
        BUNDLES / "smolvlm",
        vision="fp32",
        decoder="f16",
        threads=1,
        progress=lambda share, what: told.append((share, what)),
    ) as vlm:
        names = [vlm.vision_file.name, vlm.decoder_file.name]
    shares = [share for share, _ in told]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1
    assert names == ["vision.fp32.onnx", "decoder.f16.gguf"]
    assert all(any(name in what for _, what in told) for name in names)
