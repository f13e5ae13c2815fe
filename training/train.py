"""Train edgevlm-nano, one stage at a time, on CPUs.

`python -m training.train RUN STAGE` runs one stage of `stages.py` in the folder RUN. It starts from the
result of the stage before, saves RUN/STAGE.pt regularly, resumes from that file after an interruption, and
logs figures, validation and sample answers to RUN/STAGE.jsonl. `--export FOLDER` writes the stage's
checkpoint for transformers instead. There is one process per core, with one thread and its own images, and
the processes average their gradients. On a busy machine this is much faster than threads that wait for each
other at every operator.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn import functional
from transformers import AutoTokenizer, SmolVLMForConditionalGeneration

from training.attention import AttentionProbe, MentionHeads, attention_loss, initialize_words
from training.data import Batches, normalize
from training.decoding import decode
from training.dialogues import Packer
from training.grounding import MentionFinder
from training.model import (
    DenseHeads,
    encode_images,
    load_weights,
    nano_config,
    new_model,
    save_model,
)
from training.optimizer import MuonAdamW
from training.stages import STAGES, Stage
from training.tokenizer import build_processor, save_processor
from training.validation import Validation

SEED = 3
CLIP = 2.0


def rate_at(stage: Stage, images: int, step: int) -> float:
    done = min(1.0, images / stage.images)
    fall = stage.last_rate + (1 - stage.last_rate) * (1 + math.cos(math.pi * done)) / 2
    return stage.rate * fall * min(1.0, (step + 1) / stage.warm_up)


def language_loss(
    model: SmolVLMForConditionalGeneration, hidden: Tensor, targets: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """Return the cross entropy of the answers' tokens, and the share that greedy decoding gets right."""
    wanted = targets >= 0
    logits, true = model.lm_head(hidden[wanted]), targets[wanted]
    loss = functional.cross_entropy(logits, true)
    right = float((logits.argmax(-1) == true).float().mean())
    return loss, {"language": float(loss.detach()), "said_right": right}


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Average the gradients over all processes and clip their norm, as one flat vector."""
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    given = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in given])
    if dist.is_initialized():
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
    flat *= min(1.0, CLIP / (float(flat.norm()) + 1e-6))
    for grad, part in zip(given, flat.split([g.numel() for g in given]), strict=True):
        grad.copy_(part.view_as(grad))


class Trainer:
    """One process of a stage."""

    def __init__(self, run: Path, stage: Stage, rank: int, options: argparse.Namespace) -> None:
        self.run, self.stage, self.rank, self.options = run, stage, rank, options
        torch.manual_seed(SEED)
        tokenizer: Any = AutoTokenizer.from_pretrained(run / "processor")
        self.tokenizer = tokenizer
        self.packer, self.finder = Packer(tokenizer), MentionFinder(tokenizer)
        special = {t: tokenizer.convert_tokens_to_ids(t) for t in tokenizer.all_special_tokens}
        pixels = normalize(Batches([SEED, 0], STAGES["look"], size=256).next()["tiles"])
        self.model = new_model(nano_config(special), pixels)
        self.heads = DenseHeads()
        self.mentions = MentionHeads()
        self.images = self.step = 0
        self.optimizer_state: dict[str, Any] | None = None
        self._load()
        if options.checkpointing:
            self.model.gradient_checkpointing_enable()
        self.model.train()

    def _file(self, stage: str) -> Path:
        return self.run / f"{stage}.pt"

    def _load(self) -> None:
        file = own = self._file(self.stage.name)
        if not own.exists():
            if self.options.start:
                load_weights(self.model, self.options.start)
                return
            if self.stage.after is None:
                return
            file = self._file(self.stage.after)
            if not file.exists():
                raise SystemExit(
                    f"{file} does not exist: run the stage {self.stage.after!r} before "
                    f"{self.stage.name!r}, or name a checkpoint with --start"
                )
        state = torch.load(file, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.mentions.load_state_dict(state["mentions"])
        before = STAGES[file.stem]
        if before.text_data == "none" != self.stage.text_data:
            initialize_words(self.model, self.heads, self.finder)
        if file == own:
            self.images, self.step = state["pictures"], state["step"]
            self.optimizer_state = state["optimizer"]

    def _save(self, optimizer: MuonAdamW | None) -> None:
        if self.rank:
            return
        state = {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "mentions": self.mentions.state_dict(),
            "pictures": self.images,
            "step": self.step,
            "optimizer": optimizer.state_dict() if optimizer else None,
        }
        file = self._file(self.stage.name)
        staged = file.with_suffix(".new")
        torch.save(state, staged)
        os.replace(staged, file)

    def _log(self, line: dict[str, Any]) -> None:
        text = json.dumps(line, ensure_ascii=False)
        print(text, flush=True)
        with open(self.run / f"{self.stage.name}.jsonl", "a", encoding="utf-8") as file:
            file.write(text + "\n")

    def _trained(self) -> list[tuple[nn.Module, float]]:
        """Return the modules that this stage trains, each with its share of the learning rate."""
        core, stage = self.model.model, self.stage
        parts = {
            "vision": ([core.vision_model], stage.tower),
            "connector": ([core.connector], stage.tower),
            "decoder": ([core.text_model, self.model.lm_head], 1.0),
        }
        self.model.requires_grad_(False)
        trained = [(nn.ModuleList(parts[p][0]), parts[p][1]) for p in stage.trained]
        if stage.dense:
            trained.append((nn.ModuleList([self.heads]), stage.tower))
        if stage.attention:
            trained.append((nn.ModuleList([self.mentions]), 1.0))
        return [(module.requires_grad_(True), share) for module, share in trained]

    def train(self) -> None:
        """Run the stage to its end, from its last saved state."""
        stage, options = self.stage, self.options
        optimizer = MuonAdamW(self._trained(), stage.rate)
        learnt = [p for group in optimizer.param_groups for p in group["params"]]
        if self.optimizer_state is not None:
            optimizer.load_state_dict(self.optimizer_state)
        processes = dist.get_world_size() if dist.is_initialized() else 1
        number = list(STAGES).index(stage.name)
        batches = Batches([SEED, 1 + number, self.step, self.rank], stage, self.packer, self.finder)
        validation = None
        if not self.rank and stage.text_data != "none":
            validation = Validation(self.packer, self.tokenizer, options.validation)
        figures: dict[str, list[float]] = defaultdict(list)
        started = reported = saved = validated = time.monotonic()
        first = self.images
        parent = os.getppid()
        while self.images < stage.images:
            if os.getppid() != parent:
                raise SystemExit("the process that started this one has ended")
            for group in optimizer.param_groups:
                group["lr"] = group["share"] * rate_at(stage, self.images, self.step)
            optimizer.zero_grad()
            for _ in range(stage.accumulate):
                for name, value in self._pass(batches).items():
                    figures[name].append(value)
            average_gradients(learnt)
            optimizer.step()
            self.step += 1
            self.images += stage.batch * stage.accumulate * processes
            now = time.monotonic()
            if self.rank:
                continue
            where = {"stage": stage.name, "pictures": self.images}
            if now - reported > options.report_seconds:
                means = {name: round(float(np.nanmean(v)), 3) for name, v in figures.items()}
                speed = round((self.images - first) / (now - started), 1)
                self._log(where | {"seconds": round(now - started), "per_second": speed} | means)
                figures.clear()
                reported = now
            if now - saved > options.save_seconds:
                self._save(optimizer)
                saved = now
            if validation and now - validated > options.validate_seconds:
                self._log(where | validation.run(self.model))
                validated = time.monotonic()
        if validation:
            self._log({"stage": stage.name, "pictures": self.images} | validation.run(self.model))
        self._save(None)

    def _pass(self, batches: Batches) -> dict[str, float]:
        """Run forward and backward for one batch; return the figures."""
        stage, batch = self.stage, batches.next()
        low = torch.autocast("cpu", torch.bfloat16) if self.options.bf16 else None
        with low or contextlib.nullcontext():
            frozen = not {"vision", "connector"} & set(stage.trained)
            with torch.no_grad() if frozen else contextlib.nullcontext():
                seen = encode_images(self.model, normalize(batch["tiles"]))
            tokens: Tensor = seen["tokens"]
            figures: dict[str, float] = {}
            losses = []
            if stage.dense:
                dense, figures = self.heads(seen["middle"], seen["patches"], seen["tokens"], batch)
                losses.append(stage.dense * dense)
            if stage.text_data != "none":
                at = self.packer.image_positions(len(tokens) // len(batch["ids"]))
                out = decode(self.model, tokens, batch, at, hidden=stage.attention > 0)
                language, more = language_loss(self.model, out.last_hidden_state, batch["targets"])
                losses.append(language)
                figures |= more
                if stage.attention:
                    probe = AttentionProbe(self.model, out.hidden_states, batch)
                    off, more = attention_loss(probe, batch, at)
                    known, numbered = self.mentions(out.hidden_states, batch)
                    losses.append(stage.attention * (off + known))
                    figures |= more | numbered
            loss = torch.stack(losses).sum()
        (loss / stage.accumulate).backward()
        return figures


def _process(
    rank: int, processes: int, run: Path, stage: Stage, options: argparse.Namespace
) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{run.resolve()}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=processes)
    Trainer(run, stage, rank, options).train()
    dist.destroy_process_group()


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="folder for checkpoints and logs")
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--images", type=int, help="images in the stage (default: as in stages.py)")
    parser.add_argument("--batch", type=int, help="images per process and forward pass")
    parser.add_argument("--accumulate", type=int, help="forward passes per step")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--start", type=Path, help="checkpoint to start from, not the stage before")
    parser.add_argument("--bf16", action="store_true", help="for CPUs that are fast at it (AMX)")
    parser.add_argument("--checkpointing", action="store_true", help="less memory, slower")
    parser.add_argument("--validation", type=int, default=24, metavar="N", help="items per skill")
    parser.add_argument("--validate-seconds", type=int, default=300, metavar="S")
    parser.add_argument("--report-seconds", type=int, default=30, metavar="S")
    parser.add_argument("--save-seconds", type=int, default=90, metavar="S")
    parser.add_argument("--export", type=Path, metavar="FOLDER", help="write the checkpoint")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    run: Path = options.run
    run.mkdir(parents=True, exist_ok=True)
    if not (run / "processor").exists():
        save_processor(build_processor(), run / "processor")
    stage = STAGES[options.stage]
    for name in ("images", "batch", "accumulate"):
        value = getattr(options, name)
        if value is not None:
            stage = replace(stage, **{name: value})
    if options.export:
        trainer = Trainer(run, stage, 0, options)
        save_model(trainer.model, run / "processor", options.export)
        return
    (run / "meeting").unlink(missing_ok=True)
    # Let the allocator keep large buffers: two to four times faster here.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**32))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**33))
    spawn(_process, (options.processes, run, stage, options), nprocs=options.processes)


if __name__ == "__main__":
    main()
