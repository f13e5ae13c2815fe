"""``edgevlm watch``: one question about the newest frame of a camera, again and again."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevlm.cli.options import (
    add_generation_options,
    add_model_options,
    generation_options,
    load_model,
)
from edgevlm.errors import EdgeVLMError, InputError, MissingDependencyError, SourceError

if TYPE_CHECKING:
    from edgevlm.cli.watch_window import WatchWindow
    from edgevlm.watch import Seen, Watch

HELP = (
    "Ask one question about the newest frame of a camera, a stream, a video or a recording, again and again. "
    "Each answer is a line on stdout."
)

EXAMPLES = """\
  edgevlm watch 0 "What is in the picture?"
  edgevlm watch rtsp://camera.local/stream "Is a person there?" --choices yes,no --max-age 0.5
  edgevlm watch video.mp4 "What color is it?" --every-frame --jsonl > answers.jsonl
  edgevlm watch recording.mcap "Is the path clear?" --topic /camera/image --jsonl
  edgevlm watch pick-and-place "Is the gripper empty?" --topic observation.images.wrist --every-frame --jsonl
  edgevlm watch 0 1 "Is the door open?" --every 1 --min-change 0.02"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument(
        "sources",
        metavar="SOURCE",
        nargs="+",
        help="the number of a camera; an address; or a video, a folder of images, an MCAP file, a ROS bag or "
        "a LeRobot data set",
    )
    parser.add_argument("question", metavar="QUESTION", help="the text after each frame")
    group = parser.add_argument_group("value")
    kinds = group.add_mutually_exclusive_group()
    kinds.add_argument(
        "--schema", metavar="FILE", type=Path, help="a JSON schema that each answer keeps to"
    )
    kinds.add_argument(
        "--choices",
        metavar="A,B",
        help="labels, one of which is the answer, with commas between them",
    )
    group = parser.add_argument_group("frames")
    group.add_argument(
        "--max-age",
        metavar="S",
        type=float,
        help="age in seconds above which a frame is not answered; a source that stalls for so long is told",
    )
    group.add_argument(
        "--every",
        metavar="S",
        type=float,
        default=0.0,
        help="seconds between two answers about one source (default: as fast as the model is)",
    )
    group.add_argument(
        "--min-change",
        metavar="X",
        type=float,
        default=0.0,
        help="skip frames whose mean change of brightness is less, 0 to 1 (default: skip none)",
    )
    group.add_argument(
        "--every-frame", action="store_true", help="read files frame by frame, and drop none"
    )
    group.add_argument(
        "--memory",
        metavar="M",
        type=_memory,
        help="frames of a source that the model sees together, or seconds such as 30s (default: the newest "
        "frame)",
    )
    group.add_argument(
        "--topic", metavar="T", help="topic of a recording, or camera of a LeRobot data set"
    )
    add_model_options(parser)
    add_generation_options(parser)
    group = parser.add_argument_group("output")
    group.add_argument(
        "--jsonl",
        action="store_true",
        help="print JSON objects with value, frame_time, age, source and dropped",
    )
    group.add_argument(
        "--show",
        action="store_true",
        help="show each frame that was answered, with its answer, in a window; Escape closes it",
    )
    group.add_argument(
        "--metrics",
        metavar="PORT",
        type=int,
        help="serve metrics for Prometheus on this port of 127.0.0.1",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand and return the exit code."""
    schema = None if arguments.schema is None else _read_schema(arguments.schema)
    choices = None if arguments.choices is None else arguments.choices.split(",")
    options: Any = generation_options(arguments)
    if choices is not None:
        options = {key: options[key] for key in ("detail", "max_image_tokens")}
        if arguments.within is not None:
            options["within"] = arguments.within
    window = _open_window() if arguments.show else None
    with (
        load_model(arguments) as vlm,
        vlm.watch(
            [int(one) if one.isdecimal() else one for one in arguments.sources],
            arguments.question,
            schema=schema,
            choices=choices,
            max_age=arguments.max_age,
            every=arguments.every,
            min_change=arguments.min_change,
            every_frame=arguments.every_frame,
            memory=arguments.memory,
            topic=arguments.topic,
            **options,
        ) as watch,
    ):
        observe = _serve_metrics(watch, arguments.metrics)
        loop = functools.partial(_print_all, watch, arguments.jsonl, observe, window)
        try:
            return loop() if window is None else window.run(watch, loop)
        finally:
            print(f"edgevlm: {_summary(watch)}", file=sys.stderr)


def _print_all(
    watch: Watch, jsonl: bool, observe: Callable[[Seen], object], window: WatchWindow | None
) -> int:
    """Print and show the values, and errors that the loop goes on after; return the exit code."""
    code = 0
    while True:
        try:
            for seen in watch:
                observe(seen)
                if window is not None:
                    window.show(seen, _value(seen))
                print(_line(seen, jsonl), flush=True)
            return code
        except MissingDependencyError:
            raise
        except EdgeVLMError as error:
            if window is not None:
                window.tell(str(error))
            if jsonl:
                line = {"error": type(error).__name__, "message": str(error), "time": time.time()}
                print(json.dumps(line, ensure_ascii=False), flush=True)
            print(f"edgevlm: {error}", file=sys.stderr, flush=True)
            code = 1 if isinstance(error, SourceError) else code


def _line(seen: Seen, jsonl: bool) -> str:
    if not jsonl:
        return f"{_clock(seen.frame_time)}  {_value(seen)}"
    return json.dumps(seen.to_dict(), ensure_ascii=False)


def _value(seen: Seen) -> str:
    return seen.value if isinstance(seen.value, str) else json.dumps(seen.value)


def _clock(seconds: float) -> str:
    """Return the time of day of a Unix time, or the seconds since the beginning of a video."""
    if seconds < 1e8:
        return f"{seconds:8.2f} s"
    return time.strftime("%H:%M:%S", time.localtime(seconds)) + f".{int(seconds % 1 * 10)}"


def _memory(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _read_schema(path: Path) -> dict[str, Any]:
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"--schema {path} cannot be read: {error}") from error
    if not isinstance(schema, dict):
        raise InputError(f"--schema {path} must hold a JSON object, holds {type(schema).__name__}")
    return schema


def _summary(watch: Watch) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {count}"
        for name, count in dataclasses.asdict(watch.stats).items()
    )


def _open_window() -> WatchWindow:
    from edgevlm.cli.watch_window import WatchWindow

    return WatchWindow()


def _serve_metrics(watch: Watch, port: int | None) -> Callable[[Seen], object]:
    """Serve metrics on a port, unless it is None; return what each value is passed to."""
    if port is None:
        return lambda seen: None
    from edgevlm.cli.watch_metrics import WatchMetrics

    metrics = WatchMetrics(watch)
    metrics.serve(port)
    return metrics.observe
