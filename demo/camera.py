"""The page's camera: an element of its own, since Gradio's cannot be stopped and does not say what fails.

The browser's side is ``assets/camera.js``. It asks for the camera, shows it, and hands itself to a script
that does something with it: ``photograph`` there, or ``live`` in ``assets/live.js``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgevlm.demo.gradio_setup import gr

TEMPLATE = """\
<div class="camera">
  <div class="camera-view">
    <video muted playsinline></video>
    <div class="camera-boxes" aria-hidden="true"></div>
    <p class="camera-state" role="status"></p>
  </div>
  <div class="camera-controls">
    <button type="button" class="camera-switch"></button>
    <label class="camera-choice" hidden><span></span><select></select></label>
  </div>
</div>"""

ON_LOAD = """\
const mount = () => {
  if (window.edgevlm?.mountCamera) edgevlm.mountCamera(element, props, server);
  else setTimeout(mount, 50);  // the page's scripts come a little later
};
mount();"""


def camera(name: str, script: str, functions: tuple[Callable[..., Any], ...] = ()) -> gr.HTML:
    """A camera with a button to start and stop it, a choice of the device, and its state in words.

    Args:
        name: finds the element in the page.
        script: function of ``window.edgevlm`` in ``assets/`` that uses the camera; it is called once, as
            ``script(camera, props, server)``. ``photograph`` adds a button that puts a picture into
            the question box of the tab Chat.
        functions: which that script may call, as ``server.NAME(argument)``. They take one argument and,
            annotated with ``gr.Request``, the request, and return what JSON can say. They must not raise: the
            page is told no reason then.
    """
    return gr.HTML(
        html_template=TEMPLATE,
        js_on_load=ON_LOAD,
        server_functions=list(functions),
        elem_id=name,
        script=script,
    )
