"""LLaVA 1.5 and Yi-VL in their authors' layout, and the reference: a short module of our own.

The reference shares no code with the export: texts between images are tokenized one by one, images are padded
with Pillow, and the embeddings of images stand between those of the texts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.families.llava import CLIP, CLIP_PROCESSOR, text_config
from tests.families.row import Row
from tests.families.tokenizers import llama_tokenizer
from tests.support.checkpoints import scatter

LAYERS = {
    "mlp2x_gelu": lambda wide, width: (nn.Linear(wide, width), nn.GELU(), nn.Linear(width, width)),
    "mlp2x_gelu_Norm": lambda wide, width: (
        nn.Linear(wide, width),
        nn.LayerNorm(width),
        nn.GELU(),
        nn.Linear(width, width),
        nn.LayerNorm(width),
    ),
}
UNKNOWN = 0
"""The id of ``<unk>``, which stands for embeddings in our prompts."""


def build(
    folder: Path,
    *,
    projector: str,
    tower: str,
    whole_clip: bool,
    side: int = 56,
    ratio: str = "pad",
    trained_tower: bool = False,
) -> Path:
    """Write a checkpoint and its tower.

    Args:
        projector: ``mm_projector_type``.
        tower: ``mm_vision_tower``.
        whole_clip: the tower's folder holds a CLIP with its text part, as OpenAI's repository does.
        side: of a tile, in pixels.
        ratio: ``image_aspect_ratio``.
        trained_tower: the checkpoint itself has the tensors of the tower, which differ from the folder's.
    """
    folder.mkdir(parents=True)
    tokenizer = llama_tokenizer(added=[])
    text = text_config("llama", tokenizer, bos_token_id=1, eos_token_id=2)
    llama = LlamaForCausalLM(LlamaConfig(**text))
    scatter(llama, 0)
    connector = nn.Sequential(*LAYERS[projector](CLIP["hidden_size"], text["hidden_size"]))
    scatter(connector, 1)
    tensors = {name: tensor.contiguous() for name, tensor in llama.state_dict().items()}
    tensors |= {f"model.mm_projector.{k}": v for k, v in connector.state_dict().items()}
    vision = {name: value for name, value in CLIP.items() if name != "model_type"}
    vision["image_size"] = side
    place = folder / tower if tower.startswith("./") else folder.parent / Path(tower).name
    clip: CLIPModel | CLIPVisionModel
    if whole_clip:
        text_part = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        clip = CLIPModel(CLIPConfig(vision_config=vision, text_config=text_part))
    else:
        clip = CLIPVisionModel(CLIPVisionConfig(**vision))
    scatter(clip.vision_model if whole_clip else clip, 2)
    clip.save_pretrained(place)
    if trained_tower:
        trained = CLIPVisionModel(CLIPVisionConfig(**vision))
        scatter(trained, 3)
        start = "model.vision_tower.vision_tower.vision_model."
        tensors |= {f"{start}{name}": value for name, value in trained.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    # as OpenAI's repository has it: lengths without names, and no image_processor_type
    settings = {k: v for k, v in CLIP_PROCESSOR.items() if k != "image_processor_type"}
    settings |= {"size": side, "crop_size": side, "feature_extractor_type": "CLIPFeatureExtractor"}
    (place / "preprocessor_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(
        json.dumps(
            {
                **text,
                "architectures": ["LlavaLlamaForCausalLM"],
                "model_type": "llava",
                "image_aspect_ratio": ratio,
                "mm_hidden_size": CLIP["hidden_size"],
                "mm_projector_type": projector,
                "mm_use_im_patch_token": False,
                "mm_use_im_start_end": False,
                "mm_vision_select_feature": "patch",
                "mm_vision_select_layer": -2,
                "mm_vision_tower": tower,
                "tie_word_embeddings": False,
                "use_mm_proj": True,
            }
        )
    )
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Random weights\n")
    return folder


def llava(folder: Path) -> Path:
    """As LLaVA 1.5: the tower is OpenAI's CLIP, in a folder beside the checkpoint."""
    return build(
        folder, projector="mlp2x_gelu", tower="openai/clip-vit-large-patch14-336", whole_clip=True
    )


def llava_trained(folder: Path) -> Path:
    """A fine-tuned LLaVA 1.5 with its own tower, and images that are cropped."""
    return build(
        folder,
        projector="mlp2x_gelu",
        tower="openai/clip-vit-large-patch14-336",
        whole_clip=True,
        ratio="square",
        trained_tower=True,
    )


def yi(folder: Path) -> Path:
    """As Yi-VL: layer norms in the projector, the tower in a folder of the checkpoint."""
    return build(
        folder,
        projector="mlp2x_gelu_Norm",
        tower="./vit/clip-vit-H-14",
        whole_clip=False,
        side=168,  # with its long system prompt, a smaller image would not be worth a copy of the KV cache
    )


def write_vicuna(turns: list[tuple[str, str]]) -> str:
    """A prompt of LLaVA 1.5, which ends where the answer begins."""
    text = "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    text += "helpful, detailed, and polite answers to the user's questions. "
    for role, content in turns:
        text += f"USER: {content} " if role == "user" else f"ASSISTANT: {content}</s>"
    return text + "ASSISTANT:"


def write_yi(turns: list[tuple[str, str]]) -> str:
    """A prompt of Yi-VL."""
    text = "This is a chat between an inquisitive human and an AI assistant. Assume the role of the AI "
    text += "assistant. Read all the images carefully, and respond to the human's questions with "
    text += "informative, helpful, detailed and polite answers. "
    text += "这是一个好奇的人类和一个人工智能助手之间的对话。假设你扮演这个AI助手的角色。"
    text += "仔细阅读所有的图像，并对人类的问题做出信息丰富、有帮助、详细的和礼貌的回答。"
    text += "\n\n### "
    for role, content in turns:
        text += f"{'Human' if role == 'user' else 'Assistant'}: {content}\n### "
    return text + "Assistant:"


class OriginalProcessor:
    """The authors' code for prompts and images, in short."""

    chat_template = "in code"

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        norm = config["mm_projector_type"].endswith("_Norm")
        self._write = write_yi if norm else write_vicuna
        self._pad = config["image_aspect_ratio"] == "pad"
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self._images = CLIPImageProcessorPil.from_pretrained(find_tower(folder))
        self._tokens = (self._images.crop_size.height // CLIP["patch_size"]) ** 2

    def apply_chat_template(self, messages: Any, *, add_generation_prompt: bool) -> str:
        assert add_generation_prompt
        turns = [
            (
                message["role"],
                "".join(
                    "<image>\n" if part["type"] == "image" else part["text"]
                    for part in message["content"]
                ),
            )
            for message in messages
        ]
        return self._write(turns)

    def image_processor(self, images: list[Image.Image], return_tensors: str) -> Any:
        if self._pad:
            images = [self._padded(image) for image in images]
        return self._images(images=images, return_tensors=return_tensors)

    def _padded(self, image: Image.Image) -> Image.Image:
        side = max(image.size)
        color = tuple(int(level * 255) for level in self._images.image_mean)
        square = Image.new("RGB", (side, side), color)
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return square

    def __call__(self, text: list[str], images: Any, return_tensors: str, **settings: Any) -> Any:
        parts = text[0].split("<image>")
        begin = self.tokenizer.bos_token_id
        ids = [begin]
        for number, part in enumerate(parts):
            if number:
                ids += [UNKNOWN] * self._tokens
            ids += self.tokenizer(part, add_special_tokens=False).input_ids
        inputs = {"input_ids": torch.tensor([ids])}
        if images:
            found = self.image_processor(images, return_tensors)
            inputs["pixel_values"] = found["pixel_values"]
        return inputs


class OriginalModel:
    """Tower, projector and language model, by their tensors in the files."""

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        tensors = load_file(folder / "model.safetensors")
        self._llama = LlamaForCausalLM(LlamaConfig(**{**config, "model_type": "llama"})).eval()
        self._llama.load_state_dict(
            {
                name: v
                for name, v in tensors.items()
                if not name.startswith(("model.mm_", "model.vi"))
            }
        )
        self._projector = nn.Sequential(
            *LAYERS[config["mm_projector_type"]](config["mm_hidden_size"], config["hidden_size"])
        )
        start = "model.mm_projector."
        self._projector.load_state_dict(
            {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
        )
        tower = CLIPVisionModel.from_pretrained(find_tower(folder), dtype=torch.float32).eval()
        start = "model.vision_tower.vision_tower.vision_model."
        trained = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
        if trained:
            tower.load_state_dict(trained)
        self._tower = tower

    @property
    def base_model(self) -> OriginalModel:
        return self

    def get_image_features(self, pixel_values: torch.Tensor, return_dict: bool) -> Any:
        states = self._tower(pixel_values, output_hidden_states=True).hidden_states
        features = self._projector(states[-2][:, 1:])
        return type("Features", (), {"pooler_output": features})

    def generate(self, input_ids: torch.Tensor, pixel_values: Any = None, **settings: Any) -> Any:
        embedded = self._llama.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            features = self.get_image_features(pixel_values, True).pooler_output
            embedded[input_ids == UNKNOWN] = features.reshape(-1, features.shape[-1])
        found = self._llama.generate(inputs_embeds=embedded, **settings)
        found.sequences = torch.cat([input_ids, found.sequences], dim=1)
        return found


def find_tower(folder: Path) -> Path:
    """Return where `build` has put the tower."""
    named = json.loads((folder / "config.json").read_text())["mm_vision_tower"]
    return folder / named if named.startswith("./") else folder.parent / Path(named).name


ROWS = [
    Row(
        "llava, its authors' layout",
        llava,
        "LLaVA 1.5 with CLIP in a folder beside it, image padded to a square; the reference is a module of "
        "ours",
        missing="1.6; pickled weights",
        processor=OriginalProcessor,
        model=OriginalModel,
    ),
    Row(
        "llava, its authors' layout, trained tower",
        llava_trained,
        "the tower in the checkpoint, center crop; the reference is a module of ours",
        missing="1.6; pickled weights",
        processor=OriginalProcessor,
        model=OriginalModel,
    ),
    Row(
        "yi_vl",
        yi,
        "Yi-VL in its authors' layout, layer norms in the projector; the reference is a module of ours",
        missing="pickled weights",
        processor=OriginalProcessor,
        model=OriginalModel,
    ),
]
