"""``edgevlm serve``: run the HTTP server."""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import os
import sys
from collections.abc import Sequence

from edgevlm.cli.options import add_model_options, load_model, port_number, positive_integer
from edgevlm.errors import InputError, MissingDependencyError
from edgevlm.server.limits import MIB, Limits

HELP = """\
Serve a model over HTTP, with the chat completions of the OpenAI API. By default only programs on this
machine can connect."""

EXAMPLES = """\
  edgevlm serve
  edgevlm serve --model ./smolvlm-256m --port 9000
  edgevlm serve --allow-origin http://localhost:5173
  EDGEVLM_API_KEY=secret edgevlm serve --host 0.0.0.0"""

KEY_VARIABLE = "EDGEVLM_API_KEY"
LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    add_model_options(parser)
    group = parser.add_argument_group("server")
    group.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0: all (default: %(default)s)",
    )
    group.add_argument(
        "--port",
        metavar="N",
        type=_server_port,
        default=8080,
        help="port to listen on; 0: a free one (default: %(default)s)",
    )
    group.add_argument(
        "--api-key",
        metavar="KEY",
        help=f"key that clients must send; other users of this machine cannot see it if you set "
        f"{KEY_VARIABLE} instead",
    )
    group.add_argument(
        "--without-key",
        action="store_true",
        help="allow --host to be open to other machines without a key",
    )
    group.add_argument(
        "--allow-remote-images",
        action="store_true",
        help="fetch images from http(s) URLs in requests; only from public addresses",
    )
    group.add_argument(
        "--allow-origin",
        metavar="ORIGIN",
        action="append",
        default=[],
        help="allow web pages of this origin, such as http://localhost:5173; 'null': pages opened as "
        "files; '*': all; can be repeated",
    )
    group.add_argument(
        "--allow-host",
        metavar="NAME",
        action="append",
        default=[],
        help="allow this host name in requests, such as box.local; can be repeated",
    )
    group.add_argument(
        "--strict",
        action="store_true",
        help="refuse unknown fields in requests instead of ignoring them",
    )
    limits = parser.add_argument_group("limits")
    for option, default, meaning in (
        ("--queue", Limits.queue, "number of requests that wait"),
        ("--body-mib", Limits.body_bytes // MIB, "size of a request in MiB, images included"),
        ("--images", Limits.images, "number of images in a conversation"),
        ("--pixels", Limits.pixels, "number of pixels in one image"),
    ):
        limits.add_argument(
            option,
            type=positive_integer,
            default=default,
            metavar="N",
            help=f"{meaning} (default: %(default)s)",
        )


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand and return the exit code."""
    try:
        from edgevlm.server.access import parse_origin
        from edgevlm.server.app import create_app
        from edgevlm.server.http_server import base_url, bind, serve
        from edgevlm.server.images import is_public
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"the server needs {error.name}: pip install 'edgevlm[serve]'"
        ) from error
    key = arguments.api_key or os.environ.get(KEY_VARIABLE) or None
    local = is_local(arguments.host)
    if not local and key is None and not arguments.without_key:
        raise InputError(
            f"--host {arguments.host} is open to other machines, and there is no key; set {KEY_VARIABLE}, "
            f"or add --without-key if everybody on the network may use the model"
        )
    limits = Limits(
        body_bytes=arguments.body_mib * MIB,
        images=arguments.images,
        pixels=arguments.pixels,
        queue=arguments.queue,
    )
    origins = [parse_origin(text) for text in arguments.allow_origin]
    hosts = _trusted_hosts(arguments.host, arguments.allow_host)
    listening = bind(arguments.host, arguments.port)  # fail before the model is loaded
    with contextlib.closing(listening):
        vlm = load_model(arguments)
        name = vlm.manifest.name
        app = create_app(
            vlm,
            model=name,
            api_key=key,
            limits=limits,
            allow_address=is_public if arguments.allow_remote_images else None,
            trusted_hosts=hosts,
            allowed_origins=origins,
            strict=arguments.strict,
        )
        address = base_url(listening, arguments.host)
        serve(
            app,
            [listening],
            limits,
            on_start=lambda: print(
                f"edgevlm: {name} at {address}, Ctrl-C ends it", file=sys.stderr, flush=True
            ),
        )
    return 0


def _trusted_hosts(host: str, allowed: Sequence[str]) -> tuple[str, ...] | None:
    """Return the allowed host names, or None for all if other machines can connect.

    Raises:
        InputError: an allowed name is not a host name.
    """
    for name in allowed:
        if not name or not set("/@*").isdisjoint(name):
            raise InputError(f"--allow-host must be a name such as box.local, is {name!r}")
    if not is_local(host) and not allowed:
        return None
    return (*LOCAL_NAMES, f"[{host}]" if ":" in host else host, *allowed)


def _server_port(text: str) -> int:
    return 0 if text == "0" else port_number(text)


def is_local(host: str) -> bool:
    """Return True if only this machine can connect to an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
