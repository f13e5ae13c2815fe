"""The architecture of edgevlm-nano, its initialization, and the dense heads for its vision tower.

The checkpoint is a plain `SmolVLMForConditionalGeneration` of transformers. The dense heads exist during
training only.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GenerationConfig, SmolVLMConfig, SmolVLMForConditionalGeneration

from edgevlm.scenes.composition import COLORS
from training.labels import KINDS, LETTERS
from training.usage import save_usage

TILE = 160  # side of the square image that the tower takes, in pixels
PATCH = 16
GRID = TILE // PATCH
TOKENS = GRID * GRID  # one token for each patch: with fewer, words and small things are lost
LONGEST_EDGE = 224  # an image's longer side before it is squeezed to the tile, in pixels

VOCABULARY = 2048
VISION_WIDTH = 256
TEXT_WIDTH = 256
MAX_WORD_LENGTH = 8  # letters
MIDDLE_LAYER = 3  # the tower's layer that the middle head reads


def nano_config(token_ids: dict[str, int]) -> SmolVLMConfig:
    """Return the architecture; `token_ids` maps the tokenizer's special tokens to ids."""
    end, pad = token_ids["<end_of_utterance>"], token_ids["<|im_end|>"]
    values: dict[str, Any] = {
        "vision_config": {
            "model_type": "smolvlm_vision",
            "hidden_size": VISION_WIDTH,
            "intermediate_size": 768,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "image_size": TILE,
            "patch_size": PATCH,
        },
        "text_config": {
            "model_type": "llama",
            "vocab_size": VOCABULARY,
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 512,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
            "tie_word_embeddings": False,
            "bos_token_id": token_ids["<|im_start|>"],
            "eos_token_id": end,
            "pad_token_id": pad,
        },
        "scale_factor": 1,
        "image_token_id": token_ids["<image>"],
        "tie_word_embeddings": False,
        "pad_token_id": pad,
    }
    return SmolVLMConfig(**values)


def _wave_positions(grid: int, width: int) -> Tensor:
    """Return sines and cosines of row and column, [grid * grid, width]."""
    rates = torch.exp(torch.linspace(math.log(math.pi / 2), math.log(math.pi * grid), width // 4))
    steps = (torch.arange(grid) + 0.5) / grid
    waves = torch.cat([(steps[:, None] * rates).sin(), (steps[:, None] * rates).cos()], dim=1)
    rows = waves[:, None, :].expand(grid, grid, -1)
    columns = waves[None, :, :].expand(grid, grid, -1)
    return torch.cat([rows, columns], dim=-1).reshape(grid * grid, width)


def _principal_patches(pixels: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return weight and bias that map a patch to its first principal components, softly whitened."""
    patches = functional.unfold(pixels, PATCH, stride=PATCH).transpose(1, 2)
    patches = patches.reshape(-1, patches.shape[-1])
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(patches.T))
    values, vectors = values.flip(0)[:width], vectors.flip(1)[:, :width]
    weight = (vectors / (values + 1e-2 * values.mean()).sqrt()).T
    return weight, -weight @ mean


def new_model(config: SmolVLMConfig, pixels: Tensor) -> SmolVLMForConditionalGeneration:
    """Return a model with initial weights.

    The patch embedding starts as principal components of `pixels` [n, 3, TILE, TILE], and the position
    embedding as waves. The tower learns faster from these than from random numbers.
    """
    model = SmolVLMForConditionalGeneration(config)
    embeddings = model.model.vision_model.embeddings
    width = VISION_WIDTH
    weight, bias = _principal_patches(pixels, width)
    turn = torch.linalg.qr(torch.randn(width, width))[0]  # spread each component over all channels
    with torch.no_grad():
        embeddings.patch_embedding.weight.copy_((turn @ weight).view(width, 3, PATCH, PATCH) * 0.7)
        embeddings.patch_embedding.bias.copy_(turn @ bias * 0.7)
        embeddings.position_embedding.weight.copy_(_wave_positions(GRID, width) * 0.7)
    return model


class DenseHeads(nn.Module):
    """Linear heads that predict the dense labels from a middle layer, the last patches and the tokens."""

    def __init__(self) -> None:
        super().__init__()
        vision, text = VISION_WIDTH, TEXT_WIDTH
        # kind, color, filled, two letters, presence of the letters, their indices in the word, presence of
        # a thing, box
        self.parts = [len(KINDS), len(COLORS), 1, 2 * len(LETTERS), 2, 2 * MAX_WORD_LENGTH, 1, 4]
        self.middle_norm = nn.LayerNorm(vision)
        self.middle = nn.Linear(vision, sum(self.parts) + 16)
        self.patch = nn.Linear(vision, sum(self.parts))
        self.token_norm = nn.LayerNorm(text)
        self.token = nn.Linear(text, sum(self.parts))
        self.centre = nn.Linear(text, 1)

    def directions(self) -> tuple[Tensor, Tensor]:
        """Return the classifiers' directions of kinds [kinds, width] and colors [8, width]."""
        each = self.token.weight * self.token_norm.weight
        kinds = self.parts[0]
        return each[:kinds], each[kinds : kinds + self.parts[1]]

    def _loss(
        self, logits: Tensor, labels: dict[str, Tensor], name: str
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the loss and the figures: classes where they are defined, presence everywhere."""
        split = logits[..., : sum(self.parts)].split(self.parts, -1)
        kind, color, filled, letter, lettered, order, there, box = split
        present, plain = labels["kind"] > 0, labels["color"] >= 0
        letter = letter.unflatten(-1, (2, len(LETTERS)))
        printed = labels["letters"] > 0
        kind, true_kind = kind[present], labels["kind"][present] - 1
        color, true_color = color[plain], labels["color"][plain]
        letter, true_letter = letter[printed], labels["letters"][printed] - 1
        order = order.unflatten(-1, (2, MAX_WORD_LENGTH))[printed]
        binary = functional.binary_cross_entropy_with_logits
        pieces = [
            2.5 * _mean_cross_entropy(kind, true_kind),
            _mean_cross_entropy(color, true_color),
            0.3 * binary(filled[plain].squeeze(-1), labels["filled"][plain].float())
            if plain.any()
            else filled.sum() * 0,
            2.5 * _mean_cross_entropy(letter, true_letter),
            0.7 * _mean_cross_entropy(order, labels["order"][printed]),
            binary(lettered, printed.float()),
            binary(there.squeeze(-1), present.float()),
            8 * functional.smooth_l1_loss(box[present], labels["box"][present], beta=0.05),
        ]
        if logits.shape[-1] > sum(self.parts):
            pieces.append(binary(logits[..., -16:], labels["inside"]))
        figures = {
            f"{name}_kind": share_right(kind, true_kind),
            f"{name}_color": share_right(color, true_color),
            f"{name}_letter": share_right(letter, true_letter),
        }
        return torch.stack(pieces).sum(), figures

    def forward(
        self, middle: Tensor, patches: Tensor, tokens: Tensor, labels: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the summed loss, and the shares of right classes where they are defined."""
        normed = self.token_norm(tokens)
        total, figures = self._loss(self.token(normed), labels, "token")
        centre = self.centre(normed).squeeze(-1)
        weight = 1 + 7 * labels["centre"]  # few cells hold a centre
        total = total + functional.binary_cross_entropy_with_logits(
            centre, labels["centre"], weight
        )
        for logits, name, share in (
            (self.patch(patches), "patch", 1.0),
            (self.middle(self.middle_norm(middle)), "middle", 0.5),
        ):
            loss, more = self._loss(logits, labels, name)
            total = total + share * loss
            figures |= more if name == "patch" else {}
        return total, figures


def _mean_cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    return functional.cross_entropy(logits, classes) if len(classes) else logits.sum() * 0


def share_right(logits: Tensor, classes: Tensor) -> float:
    """Return the share of classes [...] with the largest logit [..., classes]; NaN if there are none."""
    return float((logits.argmax(-1) == classes).float().mean()) if len(classes) else math.nan


def save_model(
    model: SmolVLMForConditionalGeneration, processor_folder: Path, folder: Path
) -> None:
    """Write the checkpoint in float16 to a temporary folder, then replace `folder` with it."""
    staged, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    for left in (staged, old):
        shutil.rmtree(left, ignore_errors=True)
    shutil.copytree(processor_folder, staged)
    saved = SmolVLMForConditionalGeneration(model.config)
    saved.load_state_dict(model.state_dict())
    text: Any = model.config.text_config
    saved.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=64,
        bos_token_id=text.bos_token_id,
        eos_token_id=text.eos_token_id,
        pad_token_id=text.pad_token_id,
    )
    saved.half().save_pretrained(staged)
    save_usage(staged)
    for file in staged.iterdir():
        file.chmod(0o644)
    if folder.exists():
        folder.rename(old)
    staged.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_weights(model: SmolVLMForConditionalGeneration, folder: Path) -> None:
    """Load the weights of another checkpoint: all of them, or those of tower and connector.

    Only the latter are loaded if the decoder has another shape or vocabulary. The tower's position
    embedding, a square grid, is resized to this model's.
    """
    other: Any = SmolVLMForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (model, other)]
    if shapes[0] == shapes[1]:
        model.load_state_dict(other.state_dict())
        return
    core = other.model
    state = core.vision_model.state_dict()
    name = "embeddings.position_embedding.weight"
    side = math.isqrt(len(state[name]))
    grid = state[name].T.reshape(1, -1, side, side)
    grid = functional.interpolate(grid, (GRID, GRID), mode="bicubic", align_corners=False)
    state[name] = grid.reshape(-1, GRID * GRID).T.contiguous()
    model.model.vision_model.load_state_dict(state)
    model.model.connector.load_state_dict(core.connector.state_dict())


def encode_images(model: SmolVLMForConditionalGeneration, pixels: Tensor) -> dict[str, Any]:
    """Run tower and connector; return `middle`, `patches` and `tokens`, each [n, TOKENS, width]."""
    core = model.model
    tower = core.vision_model
    everywhere = torch.ones(pixels.shape[0], GRID, GRID, dtype=torch.bool)
    hidden = tower.embeddings(pixel_values=pixels, patch_attention_mask=everywhere)
    middle = hidden
    for i, layer in enumerate(tower.encoder.layers):
        hidden = layer(hidden, None)
        if i + 1 == MIDDLE_LAYER:
            middle = hidden
    patches = tower.post_layernorm(hidden)
    return {"middle": middle, "patches": patches, "tokens": core.connector(patches)}
