// The tab Live of edgevlm/demo/live.py: sends one frame at a time, and shows and keeps the answers.
(() => {
  const { edgevlm } = window;
  const { text } = edgevlm;

  const MAX_HISTORY = 50; // answers in the list, each with its frame
  const MAX_LOG = 10000; // answers in the log
  const SIDE = 640; // longer side of a frame, in pixels
  const THUMBNAIL = 96;
  const TYPED = 700; // milliseconds after the last key until a question is complete
  const SLOW = 500; // milliseconds until an incomplete answer is shown
  const OLD = 2000; // milliseconds until boxes fade
  const GRID = [32, 24]; // cells whose brightness is compared to find a change
  const CHANGED_LEVEL = 20; // minimal difference of a changed cell, of 255
  const CHANGED_CELLS = 4; // minimal number of changed cells; fewer are noise
  const FIELDS = ["question", "choices", "changes"];
  const field = (name) => `#live-${name} :is(textarea, input)`;

  const wait = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

  const add = (parent, tag, name, content) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (content !== undefined) made.textContent = content;
    parent.append(made);
    return made;
  };

  const number = (value, digits = 0) =>
    value.toLocaleString(navigator.language, {
      minimumFractionDigits: digits,
      maximumFractionDigits: digits,
    });
  const clock = (time) => time.toLocaleTimeString(navigator.language);

  // Return the brightness of each cell of a grid over a frame.
  const grid = document.createElement("canvas");
  [grid.width, grid.height] = GRID;
  const brightness = (canvas) => {
    const context = grid.getContext("2d", { willReadFrequently: true });
    context.imageSmoothingQuality = "high";
    context.drawImage(canvas, 0, 0, ...GRID);
    const { data } = context.getImageData(0, 0, ...GRID);
    return Uint8Array.from(
      { length: data.length / 4 },
      (_, at) => 0.299 * data[4 * at] + 0.587 * data[4 * at + 1] + 0.114 * data[4 * at + 2],
    );
  };
  const differs = (one, other) => {
    const cells = one.filter((level, at) => Math.abs(level - other[at]) > CHANGED_LEVEL);
    return cells.length >= CHANGED_CELLS;
  };

  const thumbnail = (canvas) => {
    const small = document.createElement("canvas");
    small.width = THUMBNAIL;
    small.height = Math.round((THUMBNAIL * canvas.height) / canvas.width);
    small.getContext("2d").drawImage(canvas, 0, 0, small.width, small.height);
    return small.toDataURL("image/jpeg", 0.8);
  };

  // The fields of the tab: the question, the choices, and whether equal frames are skipped.
  class Fields {
    constructor() {
      this._typed = -TYPED;
      for (const name of FIELDS) {
        this._find(name).addEventListener("input", () => (this._typed = performance.now()));
      }
    }

    get settled() {
      return performance.now() - this._typed >= TYPED;
    }

    get question() {
      return this._find("question").value;
    }

    get choices() {
      return this._find("choices").value;
    }

    get onlyChanges() {
      return this._find("changes").checked;
    }

    _find(name) {
      return document.querySelector(field(name));
    }
  }

  // The newest answer, with its age and its boxes on the video.
  class Answer {
    constructor(camera) {
      this._camera = camera;
      const root = document.querySelector("#live .live");
      this._text = root.querySelector(".answer");
      this._age = root.querySelector(".age");
      this._shares = root.querySelector(".shares");
      this._entry = null; // the answer whose age is shown
      this.say(text("Answers appear here once the camera is on."));
      setInterval(() => this.tell(), 500);
    }

    // Show a text of the page or a problem instead of an answer.
    say(words, problem = false) {
      this._show(words, problem ? "problem" : "quiet");
      this._entry = null;
      this._shares.replaceChildren();
      this._camera.boxes.replaceChildren();
      this.tell();
    }

    // Show an incomplete answer about the frame of this time. Screen readers read it when it is complete.
    grow(beginning, time) {
      this._text.ariaBusy = "true";
      this._show(beginning, "");
      if (this._entry?.time === time) return;
      this._entry = { time };
      this.same = null;
      this._shares.replaceChildren();
      this._camera.boxes.replaceChildren();
      this.tell();
    }

    show(entry, shares) {
      this._text.ariaBusy = "false";
      this._show(entry.answer, "");
      this._entry = entry;
      this.same = null; // since when the image has not changed after this answer
      this._shares.replaceChildren();
      if (shares.length) {
        const table = add(this._shares, "table", "bars");
        for (const [choice, share] of shares) {
          const row = add(table, "tr");
          add(row, "td", "", choice);
          add(add(add(row, "td", "wide"), "div", "bar"), "span").style.width = `${share * 100}%`;
          add(row, "td", "number", `${number(share * 100, 1)} %`);
        }
      }
      this._camera.boxes.replaceChildren();
      for (const { left, top, right, bottom, label } of entry.boxes ?? []) {
        const box = add(this._camera.boxes, "div");
        if (label) add(box, "span", "", label);
        Object.assign(box.style, {
          left: `${left * 100}%`,
          top: `${top * 100}%`,
          width: `${(right - left) * 100}%`,
          height: `${(bottom - top) * 100}%`,
        });
      }
      for (const { x, y, label } of entry.points ?? []) {
        const point = add(this._camera.boxes, "div", "point");
        if (label) add(point, "span", "", label);
        Object.assign(point.style, { left: `${x * 100}%`, top: `${y * 100}%` });
      }
      this.tell();
    }

    // Show the age of the answer while the camera is on.
    tell() {
      if (!this._entry) return this._set(this._age, "");
      const { time, milliseconds } = this._entry;
      const age = Date.now() - new Date(time);
      this._camera.boxes.classList.toggle("old", age > OLD && !this.same);
      if (!this._camera.on) {
        const taken = clock(new Date(time));
        this._set(this._age, text("The frame of this answer was taken at {time}.", { time: taken }));
      } else if (this.same) {
        const seconds = number((Date.now() - this.same) / 1000);
        this._set(this._age, text("The picture has not changed for {seconds} s.", { seconds }));
      } else {
        const old = text("The frame of this answer is {seconds} s old.", { seconds: number(age / 1000, 1) });
        const took = text("It took {milliseconds} ms.", { milliseconds: number(milliseconds ?? 0) });
        this._set(this._age, milliseconds === undefined ? old : `${old} ${took}`);
      }
    }

    _show(words, kind) {
      this._text.className = `answer ${kind}`;
      this._set(this._text, words);
    }

    // Do not change equal text: screen readers would read it again.
    _set(element, words) {
      if (element.textContent !== words) element.textContent = words;
    }
  }

  // The answers so far: different answers as a list with their frames, all answers as a log.
  class History {
    constructor() {
      this._log = [];
      this._held = []; // items that are added when no pointer is on the list
      const root = document.querySelector("#live-history .live-history");
      this._list = root.querySelector("ol");
      this._empty = root.querySelector("p");
      this._save = root.querySelector("button");
      root.querySelector("h2").textContent = text("Answers");
      this._empty.textContent = text(
        "No answers yet. The last {limit} different ones are listed here.",
        { limit: MAX_HISTORY },
      );
      this._save.textContent = text("Save the log");
      this._save.disabled = true;
      this._save.addEventListener("click", () => this._download());
      for (const event of ["pointerleave", "focusout"]) {
        this._list.addEventListener(event, () => setTimeout(() => this._release()));
      }
    }

    add(entry, canvas, image) {
      this._log.push(entry);
      if (this._log.length > MAX_LOG) this._log.shift();
      this._empty.hidden = true;
      this._save.disabled = false;
      const key = JSON.stringify([entry.model, entry.question, entry.answer]);
      if (this._newest?.key === key) {
        this._newest.count += 1;
        const count = number(this._newest.count);
        this._newest.times.textContent = text("{count} times", { count });
        return;
      }
      this._newest = { key, count: 1, ...this._item(entry, thumbnail(canvas), image) };
      this._held.push(this._newest.item);
      if (this._held.length > MAX_HISTORY) this._held.shift();
      if (!this._pointedAt) this._release();
    }

    get _pointedAt() {
      const hovers = matchMedia("(hover: hover)").matches && this._list.matches(":hover");
      return hovers || this._list.contains(document.activeElement);
    }

    _release() {
      if (this._pointedAt) return;
      for (const item of this._held.splice(0)) this._list.prepend(item);
      while (this._list.children.length > MAX_HISTORY) this._list.lastChild.remove();
    }

    _item(entry, small, image) {
      const item = document.createElement("li");
      const time = clock(new Date(entry.time));
      const picture = add(item, "img");
      picture.src = small;
      picture.alt = "";
      const said = add(item, "div", "said");
      add(said, "div", "text", entry.answer);
      const about = add(said, "div", "quiet");
      add(about, "time", "", time).dateTime = entry.time;
      add(about, "span", "", entry.question);
      const times = add(about, "span", "times");
      const ask = add(item, "button", "", text("Ask about this frame"));
      ask.type = "button";
      ask.ariaLabel = `${text("Ask about this frame")}: ${time}`;
      ask.addEventListener("click", () => {
        const bytes = Uint8Array.from(atob(image.split(",")[1]), (letter) => letter.charCodeAt(0));
        edgevlm.addToQuestion(new Blob([bytes], { type: "image/jpeg" }), "frame.jpg");
        edgevlm.openTab("chat");
      });
      return { item, times };
    }

    _download() {
      const lines = this._log.map((entry) => JSON.stringify(entry) + "\n");
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob(lines, { type: "application/jsonl" }));
      link.download = "live.jsonl";
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    }
  }

  edgevlm.live = async (camera, props, server) => {
    const parts = ["#live .live", "#live-history ol", ...FIELDS.map(field)];
    while (!parts.every((part) => document.querySelector(part))) await wait(50); // Gradio adds them one by one
    const fields = new Fields();
    const answer = new Answer(camera);
    const history = new History();
    let running = false;
    let asking = null; // id of the page while an answer is under way

    // Return the answer about a frame. Show a slow answer while it is incomplete.
    const look = async (sent, time) => {
      let done = false;
      asking = sent.page;
      const result = server.answer(sent).finally(() => {
        done = true;
        asking = null;
      });
      await Promise.race([result, wait(SLOW)]);
      while (!done && camera.on) {
        const found = await server.progress(sent.page);
        if (done || !camera.on) break;
        if (found?.loading) answer.say(text("Loading the model {model} …", { model: sent.model }));
        else if (found?.text) answer.grow(found.text, time);
        await Promise.race([result, wait(300)]);
      }
      return result;
    };

    const run = async () => {
      let asked = null; // question, choices and model of the last frame
      let seen = null;
      let patience = 1000; // milliseconds to wait after a problem; it grows
      let blocked = 0; // no frame is sent before this time, unless the question changes
      while (camera.on) {
        await wait(30);
        if (!camera.on || !fields.settled || !props.value?.page) continue;
        const { question, choices } = fields;
        const { page, model } = props.value;
        const asks = JSON.stringify([question, choices, model]);
        if (asks === asked && performance.now() < blocked) continue;
        if (asks !== asked) patience = 1000;
        const canvas = camera.snapshot(SIDE);
        const cells = brightness(canvas);
        if (fields.onlyChanges && asks === asked && seen && !differs(cells, seen)) {
          answer.same ??= Date.now();
          continue;
        }
        const began = performance.now();
        const time = new Date().toISOString();
        const image = canvas.toDataURL("image/jpeg", 0.9);
        const result = await look({ page, model, question, choices, image }, time);
        if (!camera.on) {
          // stopped meanwhile
        } else if (!result) {
          camera.fail(
            text("edgevlm does not answer. See whether it still runs, reload the page, then press Start."),
          );
        } else if (result.problem) {
          answer.say(result.problem, true);
          blocked = performance.now() + patience;
          patience = Math.min(2 * patience, 60000);
          seen = null;
        } else if (!result.stopped) {
          const milliseconds = Math.round(performance.now() - began);
          const entry = { time, model, question, answer: result.answer, milliseconds };
          if (result.choices.length) entry.choices = Object.fromEntries(result.choices);
          if (result.boxes.length) entry.boxes = result.boxes;
          if (result.points?.length) entry.points = result.points;
          answer.show(entry, result.choices);
          history.add(entry, canvas, image);
          patience = 1000;
          seen = cells;
        }
        asked = asks;
      }
    };

    camera.onchange = async () => {
      answer.tell();
      if (!camera.on && asking) server.leave(asking);
      if (!camera.on || running) return;
      running = true;
      await run();
      running = false;
    };
    camera.onchange(); // the camera may already be on
  };
  edgevlm.live.size = [640, 480];
})();
