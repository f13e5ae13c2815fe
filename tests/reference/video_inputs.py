"""Write what transformers' processor makes of videos into a file.

``python video_inputs.py CHECKPOINT VIDEOS.npz REQUESTS.json OUT.npz`` runs in a process of its own with
torchvision in its path, which video processors need. A request has ``messages``, ``videos`` and ``images``
with names of arrays ``[frames, height, width, 3]``, and their ``fps``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

# The compiled part of torchvision needs the PyTorch that it was built with. Resizing does not need it.
operators = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from transformers import AutoProcessor  # noqa: E402


def main() -> None:
    """Read, prepare and write."""
    checkpoint, videos_file, requests_file, out = sys.argv[1:]
    processor = AutoProcessor.from_pretrained(checkpoint)
    found: dict[str, Any] = {}
    with np.load(videos_file) as videos:
        for index, request in enumerate(json.loads(Path(requests_file).read_text())):
            given = [videos[name] for name in request["videos"]]
            metadata = [
                {
                    "fps": request["fps"],
                    "total_num_frames": len(video),
                    "duration": len(video) / request["fps"],
                    "frames_indices": list(range(len(video))),
                }
                for video in given
            ]
            text = processor.apply_chat_template(request["messages"], add_generation_prompt=True)
            inputs = processor(
                text=[text],
                images=[Image.fromarray(videos[name][0]) for name in request["images"]] or None,
                videos=given,
                video_metadata=metadata,
                do_sample_frames=False,
                return_tensors="np",
            )
            found.update({f"{index} {name}": np.asarray(value) for name, value in inputs.items()})
    np.savez(out, **found)


if __name__ == "__main__":
    main()
