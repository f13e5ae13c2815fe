// The camera of edgevlm/demo/camera.py: start, stop, list of devices, and its state in words.
//
// The camera is closed while it is not visible, behind another tab of the page or of the browser. This saves
// power and turns its light off. It is opened again when it becomes visible.
(() => {
  const { edgevlm } = window;
  const { text } = edgevlm;

  const CHOICE = "edgevlm-camera"; // key in localStorage for the device that was chosen last

  const OFF = text("The camera is off. What it shows stays on this machine.");
  const REFUSED = text(
    "The browser does not let this page use the camera. Allow the camera beside the address of the page, or in the settings of the browser or the system. Then press Start.",
  );
  const MISSING = text("There is no camera. Connect one, then press Start.");
  const BUSY = text(
    "The camera cannot be read. Another program may use it: close that program, then press Start.",
  );
  const REASONS = {
    NotAllowedError: REFUSED,
    SecurityError: REFUSED,
    NotFoundError: MISSING,
    OverconstrainedError: MISSING,
    NotReadableError: BUSY,
    AbortError: BUSY,
  };

  class Camera {
    // element: the root of the gr.HTML; size: requested width and height of the camera.
    constructor(element, size) {
      this.element = element.querySelector(".camera");
      this.video = this.element.querySelector("video");
      this.boxes = this.element.querySelector(".camera-boxes"); // covers the video exactly
      this.onchange = () => {}; // called after each change of `state`
      this._size = size;
      this._canvas = document.createElement("canvas");
      this._stream = null;
      this._wanted = false; // true after Start, until Stop
      this._attempt = 0; // number of the attempt; results of earlier attempts are ignored
      this._switch = this.element.querySelector(".camera-switch");
      this._choice = this.element.querySelector(".camera-choice");
      this._select = this._choice.querySelector("select");
      this._words = this.element.querySelector(".camera-state");
      this.video.muted = true; // browsers play muted videos only without a click
      this.video.setAttribute("aria-label", text("what the camera shows"));
      this.video.addEventListener("resize", () => {
        const { videoWidth: width, videoHeight: height } = this.video;
        if (width) this.element.style.setProperty("--ratio", width / height);
      });
      this._choice.querySelector("span").textContent = text("Camera");
      this._set("off", OFF);

      this._switch.addEventListener("click", () => (this._wanted ? this.stop() : this.start()));
      this._select.addEventListener("change", () => {
        localStorage.setItem(CHOICE, this._select.value);
        if (this._wanted) this.start();
      });
      navigator.mediaDevices?.addEventListener("devicechange", () => this._list());
      document.addEventListener("visibilitychange", () => this._look());
      new ResizeObserver(() => this._look()).observe(this.element);
      this._list();
    }

    get on() {
      return this.state === "on";
    }

    start() {
      this._close();
      this._wanted = true;
      this._look();
    }

    stop() {
      this._close();
      this._wanted = false;
      this._set("off", OFF);
    }

    // Stop and show the reason.
    fail(words) {
      this._close();
      this._wanted = false;
      this._set("failed", words);
    }

    // Show a text over the video for some seconds.
    say(words) {
      this._words.textContent = words;
      this.element.dataset.said = "";
      clearTimeout(this._said);
      this._said = setTimeout(() => delete this.element.dataset.said, 5000);
    }

    // Return the current frame on a canvas, at most `side` pixels long. The next call reuses the canvas.
    snapshot(side) {
      const { videoWidth: width, videoHeight: height } = this.video;
      const scale = Math.min(1, side / Math.max(width, height));
      this._canvas.width = Math.round(width * scale);
      this._canvas.height = Math.round(height * scale);
      const context = this._canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(this.video, 0, 0, this._canvas.width, this._canvas.height);
      return this._canvas;
    }

    // Open the camera when it becomes visible, and close it when it is hidden.
    _look() {
      if (!this._wanted) return;
      const seen = !document.hidden && this.element.getClientRects().length > 0;
      if (!seen) {
        if (this.state === "hidden") return;
        this._close();
        this._set("hidden", text("The camera is off while it is out of sight. It goes on when you come back."));
      } else if (!this._stream && this.state !== "asking") {
        this._open();
      }
    }

    async _open() {
      const attempt = ++this._attempt;
      const left = () => attempt !== this._attempt;
      if (!navigator.mediaDevices) return this.fail(text("The browser gives no camera to this address. Open the page on this machine, at 127.0.0.1."));
      this._set("asking", text("Waiting for the camera. Allow it if the browser asks."));
      const device = localStorage.getItem(CHOICE);
      const which = device ? { deviceId: { exact: device } } : { facingMode: { ideal: "environment" } };
      const [width, height] = this._size;
      const video = { ...which, width: { ideal: width }, height: { ideal: height } };
      let stream;
      try {
        stream = await navigator.mediaDevices.getUserMedia({ video });
      } catch (error) {
        if (left()) return;
        if (device && error.name === "OverconstrainedError") {
          localStorage.removeItem(CHOICE); // the chosen device no longer exists
          return this._open();
        }
        const reason = error.message || error.name;
        return this.fail(
          REASONS[error.name] ??
            text("The camera does not start: {error}. Press Start to try again.", { error: reason }),
        );
      }
      const [track] = stream.getVideoTracks();
      if (left()) return track.stop();
      this._stream = stream;
      track.addEventListener("ended", () => left() || this.fail(text("The camera was unplugged, or its permission was taken back. Press Start to try again.")));
      this.video.srcObject = stream;
      try {
        await this.video.play();
      } catch {
        return; // closed before its first frame
      }
      if (left()) return;
      await this._list();
      if (!left()) this._set("on", text("The camera is on."));
    }

    _close() {
      this._attempt++;
      this._stream?.getTracks().forEach((track) => track.stop());
      this._stream = this.video.srcObject = null;
      this.boxes.replaceChildren();
      this.state = "closing";
    }

    // Update the list of devices; hide it if there is only one.
    async _list() {
      const devices = (await navigator.mediaDevices?.enumerateDevices()) ?? [];
      const cameras = devices.filter(({ kind, deviceId }) => kind === "videoinput" && deviceId);
      this._select.replaceChildren(
        ...cameras.map(({ deviceId, label }, index) => {
          const name = label || text("camera {number}", { number: index + 1 });
          return new Option(name, deviceId);
        }),
      );
      const [track] = this._stream?.getVideoTracks() ?? [];
      const used = track?.getSettings().deviceId ?? localStorage.getItem(CHOICE);
      if (cameras.some(({ deviceId }) => deviceId === used)) this._select.value = used;
      this._choice.hidden = cameras.length < 2;
    }

    _set(state, words) {
      this.state = state;
      this.element.dataset.state = state;
      this._words.textContent = words;
      delete this.element.dataset.said;
      this._switch.textContent = this._wanted ? text("Stop") : text("Start");
      this.onchange();
    }
  }

  // Called when the element is in the page; `props.script` names the script that uses the camera.
  edgevlm.mountCamera = (element, props, server) => {
    const use = edgevlm[props.script];
    use(new Camera(element, use.size), props, server);
  };

  // Add an image to the question box of the tab Chat.
  edgevlm.addToQuestion = (blob, name) => edgevlm.attach([new File([blob], name, { type: blob.type })]);

  // A button that adds the current frame to the question in the tab Chat.
  edgevlm.photograph = (camera) => {
    const take = document.createElement("button");
    take.type = "button";
    take.className = "camera-take";
    take.textContent = text("Take a picture");
    take.hidden = true;
    take.addEventListener("click", () => {
      camera.snapshot(Infinity).toBlob(
        (blob) => {
          edgevlm.addToQuestion(blob, "camera.jpg");
          camera.say(text("The picture is in the question box."));
        },
        "image/jpeg",
        0.95,
      );
    });
    camera.element.querySelector(".camera-controls").prepend(take);
    camera.onchange = () => (take.hidden = !camera.on);
  };
  edgevlm.photograph.size = [1280, 960];
})();
