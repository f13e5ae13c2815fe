"""An RTSP server for the tests: ``python3 rtsp_server.py PICTURE PORT``.

It shows a PNG file 15 times a second, encodes it as H.264 as it goes, as a camera does, and prints its port
on 127.0.0.1; port 0 is any free one. Run it with the Python of the system, which has the module gi. The exit
code is 77 if GStreamer is not installed.
"""

from __future__ import annotations

import sys
from typing import Any

PACKAGES = "gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-good python3-gi"
"""What it needs of Debian and Ubuntu."""

PIPELINE = (
    "( filesrc location={picture} ! pngdec ! imagefreeze is-live=true ! videoconvert "
    "! video/x-raw,format=I420,framerate=15/1 ! openh264enc gop-size=15 ! rtph264pay name=pay0 )"
)


def load() -> Any:
    """Return the module ``gi.repository`` with GStreamer."""
    import gi

    for name in ("Gst", "GstRtspServer"):
        gi.require_version(name, "1.0")
    from gi import repository

    repository.Gst.init(None)
    if repository.Gst.ElementFactory.find("openh264enc") is None:
        raise ImportError("GStreamer has no openh264enc")
    return repository


def serve(picture: str, port: str) -> None:
    """Serve a picture until the process is killed."""
    try:
        repository = load()
    except (ImportError, ValueError) as error:
        print(
            f"no GStreamer ({error}): apt-get install --no-install-recommends {PACKAGES}",
            file=sys.stderr,
        )
        sys.exit(77)
    factory = repository.GstRtspServer.RTSPMediaFactory()
    factory.set_launch(PIPELINE.format(picture=picture))
    factory.set_shared(True)
    server = repository.GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    server.get_mount_points().add_factory("/camera", factory)
    server.attach(None)
    print(server.get_bound_port(), flush=True)
    repository.GLib.MainLoop().run()


if __name__ == "__main__":
    serve(*sys.argv[1:])
