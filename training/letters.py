"""Measure how well the vision tower reads without a decoder.

`python -m training.letters RUN/STAGE.pt` sums, for each letter of a word, the predictions of the dense heads
over the cells that the letter covers. It prints the share of right letters and of right texts, by length.
Training never uses these words. A decoder that does not guess cannot read better.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, SmolVLMForConditionalGeneration

from edgevlm.scenes import composition
from training import labels
from training.data import draw_tiles, normalize
from training.model import GRID, TOKENS, DenseHeads, encode_images, nano_config

SEED = 870_000


def read(checkpoint: Path, scenes_read: int) -> dict[str, tuple[int, int, int, int]]:
    """Return counts by kind and length of the text: letters, right letters, texts, right texts."""
    processor = checkpoint.parent / "processor"
    tokenizer = AutoTokenizer.from_pretrained(processor)
    special = {t: tokenizer.convert_tokens_to_ids(t) for t in tokenizer.all_special_tokens}
    model, heads = SmolVLMForConditionalGeneration(nano_config(special)), DenseHeads()
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    heads.load_state_dict(state["heads"])
    rng = np.random.default_rng(SEED)
    first, letters = sum(heads.parts[:3]), len(labels.LETTERS)
    counts: dict[str, tuple[int, int, int, int]] = defaultdict(lambda: (0, 0, 0, 0))
    for _ in range(scenes_read):
        scene = composition.sample(rng, "text", unseen_words=True)
        if len(scene.words) != 1:
            continue
        word = scene.words[0]
        with torch.no_grad():
            tokens = encode_images(model, normalize(draw_tiles([scene])["tiles"]))["tokens"]
            logits = heads.token(heads.token_norm(tokens))[0, :, first : first + 2 * letters]
        order = torch.from_numpy(labels.letter_order(word, scene, GRID).reshape(TOKENS, 2))
        log_probs = logits.unflatten(-1, (2, letters)).log_softmax(-1)
        found = [
            labels.LETTERS[int(log_probs[order == i].sum(0).argmax())] == letter
            for i, letter in enumerate(word.text.lower())
        ]
        kind = "number" if word.text.isdigit() else "word"
        row = len(found), sum(found), 1, int(all(found))
        for name in (kind, f"{kind} of {len(found)}"):
            counts[name] = tuple(np.add(counts[name], row).tolist())
    return dict(counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="RUN/STAGE.pt of any stage")
    parser.add_argument("--scenes", type=int, default=600)
    options = parser.parse_args()
    for name, row in sorted(read(options.checkpoint, options.scenes).items()):
        letters, letters_right, texts, texts_right = row
        print(
            f"{name:12} letters {100 * letters_right / letters:5.1f} %   "
            f"in full {100 * texts_right / texts:5.1f} % of {texts}"
        )


if __name__ == "__main__":
    main()
