"""A dora node that asks a vision-language model about the newest image, and sends typed JSON.

Settings are the environment variables MODEL, QUESTION, CHOICES (with commas), MAX_AGE and MAX_TOKENS.
"""

import json
import os
import threading
import time
from typing import Any

import numpy as np
import pyarrow
from dora import Node
from numpy.typing import NDArray

from edgevlm import VLM, ClosedError, EdgeVLMError, FrameSlot, Watch


def watch_options() -> dict[str, Any]:
    """Return the arguments of `VLM.watch` that the environment has."""
    options: dict[str, Any] = {}
    if choices := os.environ.get("CHOICES"):
        options["choices"] = choices.split(",")
    if max_age := os.environ.get("MAX_AGE"):
        options["max_age"] = float(max_age)
    if max_tokens := os.environ.get("MAX_TOKENS"):
        options["max_tokens"] = int(max_tokens)
    return options


def read_image(event: dict[str, Any]) -> NDArray[np.uint8]:
    """Return the RGB image of an event, uint8 ``[height, width, 3]``."""
    metadata = event["metadata"]
    image = np.asarray(event["value"], np.uint8)
    image = image.reshape(metadata["height"], metadata["width"], 3)
    if metadata["encoding"] not in ("rgb8", "bgr8"):
        raise ValueError(f"images must be rgb8 or bgr8, are {metadata['encoding']}")
    # A copy, since the memory of the event is used again.
    return image.copy() if metadata["encoding"] == "rgb8" else image[..., ::-1].copy()


def send_answers(node: Node, watch: Watch, question: str) -> None:
    """Send each answer, and each error, as ``answer`` until the watch ends."""
    while True:
        try:
            seen = next(watch)
        except StopIteration:
            return
        except ClosedError:
            return
        except EdgeVLMError as error:  # the next image may be fine
            line = {"error": type(error).__name__, "message": str(error)}
        else:
            line = seen.to_dict()
            del line["source"]
        node.send_output("answer", pyarrow.array([json.dumps({"question": question, **line})]))


def main() -> None:
    """Put each image into a slot; a thread of its own answers about the newest one."""
    node = Node()
    question = os.environ.get("QUESTION", "What is in the picture?")
    slot = FrameSlot("the input image")
    with VLM.from_pretrained(os.environ.get("MODEL", "edgevlm-nano")) as vlm:
        with vlm.watch(slot, question, **watch_options()) as watch:
            thread = threading.Thread(target=send_answers, args=(node, watch, question))
            thread.start()
            for event in node:
                if event["type"] == "INPUT":
                    taken = event["metadata"].get("time", time.time())
                    slot.put(read_image(event), time=taken, age=time.time() - taken)
            slot.close()
        thread.join()


if __name__ == "__main__":
    main()
