"""``edgevlm serve``: `edgevlm.server` as a subcommand."""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import os
import sys
from collections.abc import Sequence

from edgevlm.cli.options import add_model_options, load_model, port, positive
from edgevlm.errors import InputError, MissingDependencyError
from edgevlm.server.limits import MIB, Limits

HELP = (
    "Serve a model to programs as OpenAI's chat completions, on this machine unless told otherwise."
)

EXAMPLES = """\
  edgevlm serve
  edgevlm serve --model ./smolvlm-256m --port 9000
  edgevlm serve --allow-origin http://localhost:5173
  EDGEVLM_API_KEY=secret edgevlm serve --host 0.0.0.0"""

KEY_VARIABLE = "EDGEVLM_API_KEY"
LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser)
    group = parser.add_argument_group("server")
    group.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    group.add_argument(
        "--port", type=_port, default=8080, help="0 takes a free one (default: %(default)s)"
    )
    group.add_argument(
        "--api-key",
        metavar="KEY",
        help=f"what clients have to show; better given as {KEY_VARIABLE}, which other users of this "
        "machine cannot see",
    )
    group.add_argument(
        "--without-key",
        action="store_true",
        help="listen on other addresses than this machine's own although there is no key",
    )
    group.add_argument(
        "--allow-remote-images",
        action="store_true",
        help="fetch pictures from public addresses that requests name",
    )
    group.add_argument(
        "--allow-origin",
        metavar="ORIGIN",
        action="append",
        default=[],
        help="let web pages of this origin use the server, such as http://localhost:5173; 'null' is "
        "pages opened as files, '*' all; may be given again",
    )
    group.add_argument(
        "--allow-host",
        metavar="NAME",
        action="append",
        default=[],
        help="another name that requests may call the server by; may be given again",
    )
    group.add_argument(
        "--strict",
        action="store_true",
        help="refuse fields of requests that the server does not know, instead of ignoring them",
    )
    limits = parser.add_argument_group("limits of a request")
    for option, default, meaning in (
        ("--queue", Limits.queue, "requests that wait"),
        ("--body-mib", Limits.body_bytes // MIB, "size, pictures included"),
        ("--pictures", Limits.pictures, "of a conversation"),
        ("--pixels", Limits.pixels, "of one picture"),
    ):
        limits.add_argument(
            option,
            type=positive,
            default=default,
            metavar="N",
            help=f"{meaning} (default: %(default)s)",
        )


def run(arguments: argparse.Namespace) -> int:
    try:
        from edgevlm.server.access import origin
        from edgevlm.server.app import create_app
        from edgevlm.server.http_server import bind, serve, url
        from edgevlm.server.images import is_public
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"the server needs {error.name}: pip install 'edgevlm[serve]'"
        ) from error
    key = arguments.api_key or os.environ.get(KEY_VARIABLE) or None
    local = is_local(arguments.host)
    if not local and key is None and not arguments.without_key:
        raise InputError(
            f"--host {arguments.host} is open to other machines and there is no key: set {KEY_VARIABLE}, "
            f"or say --without-key if everybody there may use the model"
        )
    limits = Limits(
        body_bytes=arguments.body_mib * MIB,
        pictures=arguments.pictures,
        pixels=arguments.pixels,
        queue=arguments.queue,
    )
    origins = [origin(text) for text in arguments.allow_origin]
    hosts = _trusted_hosts(arguments.host, arguments.allow_host)
    listening = bind(arguments.host, arguments.port)  # fails before the model takes its time
    with contextlib.closing(listening):
        vlm = load_model(arguments)
        name = vlm.manifest.name
        app = create_app(
            vlm,
            model=name,
            api_key=key,
            limits=limits,
            remote_addresses=is_public if arguments.allow_remote_images else None,
            trusted_hosts=hosts,
            allowed_origins=origins,
            strict=arguments.strict,
        )
        address = url(listening, arguments.host)
        serve(
            app,
            [listening],
            limits,
            started=lambda: print(
                f"edgevlm: {name} at {address}, Ctrl-C ends it", file=sys.stderr, flush=True
            ),
        )
    return 0


def _trusted_hosts(host: str, allowed: Sequence[str]) -> tuple[str, ...] | None:
    """Names that requests may call the server by; None for any: other machines know it by many names.

    Raises:
        InputError: something allowed that is no name.
    """
    for name in allowed:
        if not name or not set("/@*").isdisjoint(name):
            raise InputError(f"--allow-host takes a name such as box.local, is {name!r}")
    if not is_local(host) and not allowed:
        return None
    return (*LOCAL_NAMES, f"[{host}]" if ":" in host else host, *allowed)


def _port(text: str) -> int:
    return 0 if text == "0" else port(text)


def is_local(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
