"""An RTSP server for the tests: ``python3 rtsp_server.py PICTURE PORT``.

It shows a PNG file 15 times a second, encodes it as H.264 as it goes, as a camera does, and prints its port
on 127.0.0.1; port 0 is any free one. Run it with the Python of the system, which has the module gi. The exit
code is 77 if GStreamer is not installed.
"""

from __future__ import annotations

import sys

PACKAGES = "gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-good python3-gi"
"""What it needs of Debian and Ubuntu."""

PIPELINE = (
    "( filesrc location={picture} ! pngdec ! imagefreeze is-live=true ! videoconvert "
    "! video/x-raw,format=I420,framerate=15/1 ! openh264enc gop-size=15 ! rtph264pay name=pay0 )"
)


def serve(picture: str, port: str) -> None:
    """Serve a picture until the process is killed."""
    import gi

    for name in ("Gst", "GstRtspServer"):
        gi.require_version(name, "1.0")
    from gi.repository import GLib, Gst, GstRtspServer

    Gst.init(None)
    if Gst.ElementFactory.find("openh264enc") is None:
        raise ImportError("there is no openh264enc")
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(PIPELINE.format(picture=picture))
    factory.set_shared(True)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    server.get_mount_points().add_factory("/camera", factory)
    server.attach(None)
    print(server.get_bound_port(), flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    try:
        serve(*sys.argv[1:])
    except (ImportError, ValueError) as error:
        command = f"apt-get install --no-install-recommends {PACKAGES}"
        print(f"no GStreamer ({error}): {command}", file=sys.stderr)
        sys.exit(77)
