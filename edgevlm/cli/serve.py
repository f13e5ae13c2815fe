"""``edgevlm serve``: `edgevlm.server` as a subcommand."""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import os
import sys

from edgevlm.cli.options import add_model_options, load_model, port, positive
from edgevlm.errors import InputError, MissingDependencyError
from edgevlm.server.limits import MIB, Limits

HELP = (
    "Serve a model to programs as OpenAI's chat completions, on this machine unless told otherwise."
)

EXAMPLES = """\
  edgevlm serve
  edgevlm serve --model ./smolvlm-256m --port 9000
  EDGEVLM_API_KEY=secret edgevlm serve --host 0.0.0.0"""

KEY_VARIABLE = "EDGEVLM_API_KEY"
LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser)
    group = parser.add_argument_group("server")
    group.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    group.add_argument("--port", type=port, default=8080, help="default: %(default)s")
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
        import uvicorn

        from edgevlm.server.app import create_app
        from edgevlm.server.connection import connection_options
        from edgevlm.server.pictures import is_public
        from edgevlm.server.shutdown import BoundedServer
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
    vlm = load_model(arguments)
    name = vlm.manifest.name
    app = create_app(
        vlm,
        model=name,
        api_key=key,
        limits=limits,
        remote_addresses=is_public if arguments.allow_remote_images else None,
        trusted_hosts=(*LOCAL_NAMES, arguments.host) if local else None,
    )
    print(
        f"edgevlm: {name} at http://{arguments.host}:{arguments.port}/v1, Ctrl-C ends it",
        file=sys.stderr,
    )
    config = uvicorn.Config(
        app,
        host=arguments.host,
        port=arguments.port,
        log_level="warning",
        **connection_options(limits),
    )
    with contextlib.suppress(KeyboardInterrupt):
        BoundedServer(config, limits).run()
    return 0


def is_local(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
