"""Trains edgevlm-nano: first the tower from dense labels, then everything from dialogues too.

`python -m training.train RUN` goes through the stages in RUN (a folder for checkpoints), resumes
where an earlier run stopped, and ends with the checkpoint in RUN/nano; `--export FOLDER` writes what
RUN has so far to FOLDER instead. It runs one process per core, each with one thread and its own
pictures, and averages their gradients: on a machine that does other work too this loses far less
than threads that wait for each other at every operator. Not covered: GPUs, mixed precision.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn import functional
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    SmolVLMForConditionalGeneration,
)

from training.data import Batches, normalise
from training.dialogues import Packer, attention
from training.model import TOKENS, DenseHeads, nano_config, new_model, see
from training.optimizer import MuonAdamW, split_parameters
from training.tokenizer import build_processor, save_processor

SEED = 2
SAVE_SECONDS = 90
REPORT_SECONDS = 30
CLIP = 2.0


@dataclass(frozen=True)
class Stage:
    """One stretch of training; the learning rate rises over `warm_up` steps, falls as a cosine."""

    name: str
    pictures: int
    batch: int  # per process
    rate: float
    last_rate: float  # as a share of `rate`
    dense: float  # weight of the dense loss
    language: bool
    smallest: float  # least shape size, as a share of the picture's shorter side
    warm_up: int = 100


STAGES = (
    Stage("look", 33_000, 32, 1.5e-3, 0.4, 1.0, False, 0.18),
    Stage("speak", 33_000, 24, 1.2e-3, 0.02, 0.15, True, 0.18),
    Stage("polish", 25_000, 24, 8e-4, 0.02, 0.15, True, 0.18),
)


@dataclass
class Progress:
    """Where a run stands; saved with each checkpoint."""

    stage: int = 0
    pictures: int = 0
    step: int = 0


def rate_at(stage: Stage, progress: Progress) -> float:
    done = min(1.0, progress.pictures / stage.pictures)
    fall = stage.last_rate + (1 - stage.last_rate) * (1 + math.cos(math.pi * done)) / 2
    return stage.rate * fall * min(1.0, (progress.step + 1) / stage.warm_up)


def language_loss(
    model: SmolVLMForConditionalGeneration, tokens: Tensor, batch: dict[str, Tensor], start: int
) -> tuple[Tensor, dict[str, float]]:
    """Cross entropy of what the model has to say, and how much of it greedy choice gets right."""
    words = model.model.text_model.embed_tokens(batch["ids"])
    words = torch.cat([words[:, :start], tokens, words[:, start + TOKENS :]], dim=1)
    hidden = model.model.text_model(
        inputs_embeds=words,
        attention_mask=attention(batch["owner"]),
        position_ids=batch["positions"],
        use_cache=False,
    ).last_hidden_state
    wanted = batch["targets"] >= 0
    logits, targets = model.lm_head(hidden[wanted]), batch["targets"][wanted]
    loss = functional.cross_entropy(logits, targets)
    right = float((logits.argmax(-1) == targets).float().mean())
    return loss, {"language": float(loss.detach()), "said_right": right}


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Average over the processes and clip, as one flat vector."""
    given = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in given])
    if dist.is_initialized():
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
    flat *= min(1.0, CLIP / (float(flat.norm()) + 1e-6))
    for grad, part in zip(given, flat.split([g.numel() for g in given]), strict=True):
        grad.copy_(part.view_as(grad))


def save_model(
    model: SmolVLMForConditionalGeneration, processor_folder: Path, folder: Path
) -> None:
    """Write the checkpoint in float16 aside, then put it in place of `folder`."""
    aside, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    for left in (aside, old):
        shutil.rmtree(left, ignore_errors=True)
    shutil.copytree(processor_folder, aside)
    half = SmolVLMForConditionalGeneration(model.config)
    half.load_state_dict(model.state_dict())
    text: Any = model.config.text_config
    half.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=64,
        bos_token_id=text.bos_token_id,
        eos_token_id=text.eos_token_id,
        pad_token_id=text.pad_token_id,
    )
    half.half().save_pretrained(aside)
    for file in aside.iterdir():
        file.chmod(0o644)
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


class Trainer:
    """The state of one process of a run."""

    def __init__(self, run: Path, stages: tuple[Stage, ...], rank: int) -> None:
        self.run, self.stages, self.rank = run, stages, rank
        torch.manual_seed(SEED)
        tokenizer: Any = AutoTokenizer.from_pretrained(run / "processor")
        self.packer = Packer(tokenizer)
        special = {t: tokenizer.convert_tokens_to_ids(t) for t in tokenizer.all_special_tokens}
        config = nano_config(special)
        pixels = normalise(Batches([SEED, 0], 384, 0.18).next()["tiles"])
        self.model = new_model(config, pixels)
        self.heads = DenseHeads()
        self.progress = Progress()
        self.optimizer_state: dict[str, Any] | None = None
        if (run / "state.pt").exists():
            self._load()

    def _load(self) -> None:
        state = torch.load(self.run / "state.pt", map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.progress = Progress(**state["progress"])
        self.optimizer_state = state["optimizer"]

    def _save(self, optimizer: MuonAdamW | None) -> None:
        if self.rank:
            return
        state = {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "progress": vars(self.progress),
            "optimizer": optimizer.state_dict() if optimizer else None,
        }
        torch.save(state, self.run / "state.pt.new")
        os.replace(self.run / "state.pt.new", self.run / "state.pt")

    def train(self) -> None:
        while self.progress.stage < len(self.stages):
            self._run_stage(self.stages[self.progress.stage])
            self.progress = Progress(stage=self.progress.stage + 1)
            self.optimizer_state = None
            self._save(None)
        if not self.rank:
            save_model(self.model, self.run / "processor", self.run / "nano")

    def _trained(self, stage: Stage) -> nn.Module:
        if stage.language:
            return nn.ModuleList([self.model, self.heads])
        core = self.model.model
        return nn.ModuleList([core.vision_model, core.connector, self.heads])

    def _run_stage(self, stage: Stage) -> None:
        matrices, others = split_parameters(self._trained(stage))
        optimizer = MuonAdamW(matrices, others, stage.rate)
        if self.optimizer_state is not None:
            optimizer.load_state_dict(self.optimizer_state)
        progress = self.progress
        seed = [SEED, 1 + progress.stage, progress.step, self.rank]
        packer = self.packer if stage.language else None
        batches = Batches(seed, stage.batch, stage.smallest, packer)
        processes = dist.get_world_size() if dist.is_initialized() else 1
        figures: dict[str, list[float]] = defaultdict(list)
        started = reported = saved = time.monotonic()
        first = progress.pictures
        while progress.pictures < stage.pictures:
            for group in optimizer.param_groups:
                group["lr"] = rate_at(stage, progress)
            for name, value in self._step(stage, batches.next(), optimizer).items():
                figures[name].append(value)
            average_gradients(matrices + others)
            optimizer.step()
            progress.step += 1
            progress.pictures += stage.batch * processes
            now = time.monotonic()
            if now - reported > REPORT_SECONDS and not self.rank:
                means = {name: round(sum(v) / len(v), 3) for name, v in figures.items()}
                speed = round((progress.pictures - first) / (now - started))
                line = {"stage": stage.name, "pictures": progress.pictures, "per_second": speed}
                print(json.dumps(line | means), flush=True)
                figures.clear()
                reported = now
            if now - saved > SAVE_SECONDS:
                self._save(optimizer)
                saved = now

    def _step(
        self, stage: Stage, batch: dict[str, Tensor], optimizer: MuonAdamW
    ) -> dict[str, float]:
        seen = see(self.model, normalise(batch["tiles"]))
        dense: Tensor
        figures: dict[str, float]
        dense, figures = self.heads(seen["middle"], seen["patches"], seen["tokens"], batch)
        loss = stage.dense * dense
        if stage.language:
            spoken, more = language_loss(self.model, seen["tokens"], batch, self.packer.picture_at)
            loss = loss + spoken
            figures |= more
        optimizer.zero_grad()
        loss.backward()
        return figures


def _process(rank: int, processes: int, run: Path, stages: tuple[Stage, ...]) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{run.resolve()}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=processes)
    Trainer(run, stages, rank).train()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder for checkpoints")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    for stage in STAGES:
        parser.add_argument(f"--{stage.name}", type=int, default=stage.pictures, metavar="PICTURES")
    parser.add_argument("--export", type=Path, metavar="FOLDER", help="write what RUN has so far")
    arguments = parser.parse_args()
    run: Path = arguments.run
    run.mkdir(parents=True, exist_ok=True)
    if not (run / "processor").exists():
        save_processor(build_processor(), run / "processor")
    stages = tuple(replace(s, pictures=getattr(arguments, s.name)) for s in STAGES)
    if arguments.export:
        save_model(Trainer(run, stages, 0).model, run / "processor", arguments.export)
        return
    (run / "meeting").unlink(missing_ok=True)
    # Large buffers kept by the allocator rather than given back: two to four times faster here.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**32))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**33))
    spawn(_process, (arguments.processes, run, stages), nprocs=arguments.processes)


if __name__ == "__main__":
    main()
