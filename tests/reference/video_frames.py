"""Write which frames transformers' video processors choose into a file.

``python video_frames.py REQUESTS.json OUT.json`` runs in a process of its own with torchvision in its path.
A request has the ``rule``, ``total`` and ``fps`` of the video, and ``options``. A result is a list of indices
or the text of an error.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

# The compiled part of torchvision needs the PyTorch that it was built with. Choosing does not need it.
operators = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from transformers.models.qwen2_vl.video_processing_qwen2_vl import (  # noqa: E402
    Qwen2VLVideoProcessor,
)
from transformers.models.qwen3_vl.video_processing_qwen3_vl import (  # noqa: E402
    Qwen3VLVideoProcessor,
)
from transformers.models.smolvlm.video_processing_smolvlm import (  # noqa: E402
    SmolVLMVideoProcessor,
)
from transformers.video_utils import VideoMetadata  # noqa: E402

PROCESSORS = {
    "inset": SmolVLMVideoProcessor,
    "stride": Qwen2VLVideoProcessor,
    "spread": Qwen3VLVideoProcessor,
}


def main() -> None:
    """Read, choose and write."""
    processors = {rule: kind() for rule, kind in PROCESSORS.items()}
    found: list[list[int] | str] = []
    for request in json.loads(Path(sys.argv[1]).read_text()):
        total, fps = request["total"], request["fps"]
        metadata = VideoMetadata(total_num_frames=total, fps=fps, duration=total / fps)
        try:
            chosen = processors[request["rule"]].sample_frames(metadata, **request["options"])
        except (ValueError, ZeroDivisionError, RuntimeError) as error:
            found.append(str(error))
        else:
            found.append([int(index) for index in chosen])
    Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
