"""The camera of the page. Gradio's own camera cannot be stopped and does not tell why it fails.

The browser's part is `assets/camera.js`. It opens the camera, shows it, and passes itself to a script that
uses it: ``photograph`` in the same file, or ``live`` in `assets/live.js`.
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
  else setTimeout(mount, 50);  // the page's scripts are loaded a little later
};
mount();"""


def camera(name: str, script: str, functions: tuple[Callable[..., Any], ...] = ()) -> gr.HTML:
    """Lay out a camera: a button to start and stop it, a list of devices, and its state in words.

    Args:
        name: id of the element.
        script: function of ``window.edgevlm`` in ``assets/`` that uses the camera. It is called once, as
            ``script(camera, props, server)``. ``photograph`` adds a button that puts an image into the
            question box of the tab Chat.
        functions: functions that the script may call, as ``server.NAME(argument)``. They have one parameter
            and may have one of type ``gr.Request``, and return JSON values. They must not raise: Gradio
            does not tell the page why.
    """
    return gr.HTML(
        html_template=TEMPLATE,
        js_on_load=ON_LOAD,
        server_functions=list(functions),
        elem_id=name,
        script=script,
    )
