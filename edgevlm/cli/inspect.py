"""``edgevlm inspect``: show the content of a bundle."""

from __future__ import annotations

import argparse
import dataclasses

from edgevlm.bundle import Bundle
from edgevlm.manifest import (
    BoxTokenFormat,
    CrossPacking,
    Drift,
    FileEntry,
    ListFormat,
    LocationFormat,
    LocTokenFormat,
    Manifest,
    ParityReport,
    Tiling,
    ToolCallFormat,
    VideoSpec,
)

HELP = (
    "Show the content of a bundle: its origin, its files, and their difference from the checkpoint."
)

EXAMPLES = """\
  edgevlm inspect edgevlm-nano
  edgevlm inspect ./smolvlm-256m --json | jq .parity"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument(
        "bundle", metavar="BUNDLE", help="a built-in name, a folder or a hub repository"
    )
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand and return the exit code."""
    bundle = Bundle.open(arguments.bundle)
    if arguments.json:
        print(bundle.manifest.to_json(), end="")
    else:
        print(f"folder        {bundle.folder}")
        print(format_manifest(bundle.manifest))
        print(format_choice_calibration(bundle))
    return 0


def format_manifest(manifest: Manifest) -> str:
    """Return a manifest as text for people."""
    source, image, vision, decoder = (
        manifest.source,
        manifest.image,
        manifest.vision,
        manifest.decoder,
    )
    tiles, tokens = (
        "tiles of their own size",
        f"one token for {vision.pixels_per_token} x {vision.pixels_per_token} pixels",
    )
    if isinstance(vision.packing, CrossPacking):
        side = vision.pixels_per_token
        tiles = f"one canvas of squares of {side} x {side} pixels"
        tokens = (
            f"one token, cross-attention to {vision.packing.rows_per_square} rows for each square"
        )
    if image.tile_size is not None:
        tiles = f"tiles of {image.tile_size[1]} x {image.tile_size[0]} pixels"
        tokens = f"{vision.tokens_per_tile} tokens for each tile"
    if vision.fixed_by_export:
        tiles += ", chosen for the export (--image-size)"
    parity = manifest.parity
    revision = f" at {source.revision}" if source.revision else ""
    lines = [
        f"name          {manifest.name}",
        f"source        {source.repository}{revision} ({source.family}, licence {source.license})",
        f"images        {_tiling(image.tiling)}, {tiles}",
        *([f"videos        {_video(manifest.video)}"] if manifest.video else []),
        f"vision        {tokens}, of width {vision.width}",
        *_files(vision.weight_files, parity.vision if parity else {}),
        *([f"calibration   {vision.calibration}"] if vision.calibration else []),
        f"decoder       {decoder.architecture}, width {decoder.width}, "
        f"vocabulary {decoder.vocabulary_size}, context {decoder.context_length}, "
        f"{decoder.attention} attention",
        *_files(decoder.weight_files, parity.decoder if parity else {}),
        *(
            [f"tools         {_tool_calls(manifest.prompt.tool_calls)}"]
            if manifest.prompt.tool_calls
            else []
        ),
    ]
    lines += _parity(parity) if parity else ["parity        not measured"]
    if usage := manifest.usage:
        lines.append(f"trained on    {usage.images or 'images of an unknown kind'}")
        lines += [
            f"  {language} {task:8} {question}"
            for language in usage.tasks
            for task, question in usage.questions(language).items()
        ]
        if usage.location_format:
            lines.append(f"  boxes       {_location_format(usage.location_format)}")
    if manifest.golden:
        lines.append(f"golden        {manifest.golden.question!r}")
    made = ", ".join(f"{name} {version}" for name, version in manifest.created_with.items())
    return "\n".join([*lines, f"made with     {made}"])


def format_choice_calibration(bundle: Bundle) -> str:
    """Return the temperatures of `edgevlm calibrate` as text for people."""
    measured = bundle.choice_calibration.temperatures
    if not measured:
        return "choices       not calibrated"
    names = {
        entry.sha256: precision
        for files in (bundle.manifest.vision.files, bundle.manifest.decoder.choices)
        for precision, entry in files.items()
    }
    return "\n".join(
        f"choices       {names[one.vision]} with {names[one.decoder]}: temperature {one.temperature:.2f}, "
        f"expected calibration error {one.error_before:.3f} before, {one.error_after:.3f} after "
        f"({one.questions} questions, {one.date[:10]})"
        for one in measured
    )


def _location_format(location_format: LocationFormat) -> str:
    """Return how a model writes boxes and points."""
    if isinstance(location_format, ListFormat):
        return f"[left, top, right, bottom], 0 to {location_format.scale:g}"
    if isinstance(location_format, LocTokenFormat):
        return f"<loc> tokens for top, left, bottom and right, {location_format.bins} bins"
    if isinstance(location_format, BoxTokenFormat):
        return f"<|box_start|>(left,top),(right,bottom)<|box_end|>, 0 to {location_format.scale:g}"
    keys = ", ".join((*location_format.box_keys, *location_format.point_keys))
    unit = (
        "pixels of the resized image"
        if location_format.scale is None
        else f"0 to {location_format.scale:g}"
    )
    return f"JSON with {keys}, {unit}"


def _tool_calls(tool_format: ToolCallFormat) -> str:
    """Return how a model calls tools."""
    return f"{tool_format.begin!r}, JSON with name and arguments, {tool_format.end!r}"


def _parity(parity: ParityReport) -> list[str]:
    """Return how a bundle was measured, and a line for each pair of files."""
    answers = parity.answers
    files = f"{answers.exact_vision} with {answers.exact_decoder}" if answers else "all files"
    lines = [
        f"parity        {files} beside the checkpoint in float32: images {parity.pictures}, "
        f"prompts {parity.prompts}, answer positions {parity.positions}"
        + (f", tokenized texts {parity.texts}" if parity.texts else "")
        + ("; EXPORTED ALTHOUGH A BOUND WAS EXCEEDED" if parity.drift_allowed else "")
    ]
    if answers is None:
        return [
            *lines,
            "  short form, of --quick or an older edgevlm: answers about photographs not measured",
        ]
    lines.append(
        f"answers       beside {files}: images {len(answers.images)}, tokens {answers.positions}; another "
        f"image causes KL {answers.image_kl:.2g} and {answers.image_agreement:.1%} same top tokens"
    )
    for pair in answers.pairs:
        lines.append(
            f"  {pair.vision:11} {pair.decoder:8} KL {pair.kl:<8.2g} worst image "
            f"{max(pair.kl_by_image):<8.2g} (bound {pair.kl_bound:.2g})  same top token "
            f"{pair.top1_agreement:.1%} (bound {pair.agreement_bound:.1%})  same beginning "
            f"{pair.same_start:.1%}" + ("  loaded on a CPU" if answers.is_automatic(pair) else "")
        )
    return lines


def _video(video: VideoSpec) -> str:
    return f"{_tiling(video.tiling)}, {video.fps:g} frames in a second, {video.frames_per_tile} in a tile"


def _tiling(tiling: Tiling) -> str:
    """Return the strategy with its settings."""
    settings = {
        field.name: getattr(tiling, field.name)
        for field in dataclasses.fields(tiling)
        if field.name not in ("kind", "tile_size")
    }
    named = [
        f"{len(value)} {name}" if name == "resolutions" else f"{name.replace('_', ' ')} {value}"
        for name, value in settings.items()
        if value is not None
    ]
    return f"{tiling.kind} ({', '.join(named)})"


def _files(files: dict[str, FileEntry], drift: dict[str, Drift]) -> list[str]:
    lines = []
    for precision, entry in files.items():
        line = f"  {precision:10}  {entry.name:26} {entry.size / 1e6:9.1f} MB"
        if entry.bits_per_weight is not None:
            line += f"  {entry.bits_per_weight:5.2f} bits per weight"
        if precision in drift:
            measured = drift[precision]
            line += f"  relative error {measured.relative_error:.1e}"
            if measured.centered_error is not None:
                line += f", without the mean {measured.centered_error:.1e}"
            if measured.top1_agreement is not None:
                line += f"  top-1 agreement {measured.top1_agreement:.1%}"
        lines.append(line)
    return lines
