// Additions to Gradio's chat window and question box in the tab Chat: images can be pasted and dropped
// anywhere on the conversation; a question is sent only after the answer before it and after the uploads of its
// images; texts are copied in their original form; a click enlarges an image.
(() => {
  "use strict";

  const text = (english, values) => window.edgevlm.text(english, values);
  const $ = (selector) => document.querySelector(selector);
  const box = () => $("#question textarea");
  const answering = () => $("#question .stop-button");
  const shown = () => Boolean($("#question")?.offsetParent);
  /** Let the server show why something is refused, in the page's language. */
  const refuse = (reason, name = "") =>
    document.dispatchEvent(new CustomEvent("edgevlm-refused", { detail: { reason, name } }));
  const set = (element, name, value) => {
    if (element.getAttribute(name) !== value) element.setAttribute(name, value);
  };

  // ---- Uploads ---------------------------------------------------------------------------------------

  let uploading = 0; // running uploads of images of the box
  let waiting = null; // called after the uploads; a question waits for it
  const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

  function wait(next) {
    waiting = next;
    $("#question")?.toggleAttribute("data-waiting", Boolean(next));
  }

  function lost() {
    wait(null);
    refuse("lost");
  }

  const fetched = window.fetch;
  window.fetch = async (...request) => {
    const address = String(request[0]?.url ?? request[0]);
    if (!/\/upload(\?|$)/.test(address)) return fetched(...request);
    uploading += 1;
    try {
      const answer = await fetched(...request);
      if (!answer.ok) lost();
      return answer;
    } catch (error) {
      lost();
      throw error;
    } finally {
      uploading -= 1;
    }
  };

  /** Send when all added images are in the box. Gradio itself waits for the last one only. */
  async function sendWhenUploaded() {
    const send = () => $("#question .submit-button")?.click();
    wait(send);
    while (uploading > 0 || $("#question .loader")) await pause(50);
    await pause(50); // Gradio adds the last image to the box after its upload
    if (waiting !== send) return;
    wait(null);
    send();
  }

  /** True if a question cannot be sent now: during an answer, or before its images are uploaded. */
  function held() {
    if (answering() || waiting) return true;
    if (uploading === 0) return false;
    sendWhenUploaded();
    return true;
  }

  // ---- Images from paste and drop --------------------------------------------------------------------

  /** Add files to the question, as the dialog of the box does. */
  function attach(files) {
    const input = $("#question input[type=file]");
    const given = new DataTransfer();
    for (const file of files) given.items.add(file);
    input.files = given.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  }

  /** Write into the box in a way that the browser's undo can revert. */
  function write(words, replace) {
    const area = box();
    area.focus();
    if (replace) area.select();
    document.execCommand("insertText", false, words);
  }

  const target = (event) => event.target.closest?.("#conversation, #question");

  function dragged(event) {
    const place = target(event);
    $(".dropping")?.classList.remove("dropping");
    if (!place) return;
    place.classList.add("dropping");
    event.preventDefault();
  }

  function dropped(event) {
    $(".dropping")?.classList.remove("dropping");
    if (!target(event)) return;
    const { items, files } = event.dataTransfer;
    const words = event.dataTransfer.getData("text/plain");
    if (files.length === 0 && event.target === box()) return; // the browser inserts dropped text itself
    event.preventDefault();
    event.stopPropagation();
    if (files.length === 0) return words && write(words, false);
    // The content of a folder cannot be sent.
    const entries = [...items].filter((item) => item.kind === "file").map((item) => item.webkitGetAsEntry?.());
    const folders = entries.filter((entry) => entry?.isDirectory).map((entry) => entry.name);
    folders.forEach((name) => refuse("folder", name));
    const given = [...files].filter((file, at) => !entries[at]?.isDirectory);
    if (given.length > 0) attach(given);
  }

  function pasted(event) {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!shown() || files.length === 0) return;
    if (event.target.closest?.("input, textarea") && event.target !== box()) return;
    event.preventDefault();
    event.stopPropagation();
    attach(files);
    const words = event.clipboardData.getData("text/plain");
    if (words && event.target === box()) write(words, false);
  }

  document.addEventListener("dragenter", dragged, true);
  document.addEventListener("dragover", dragged, true);
  document.addEventListener("drop", dropped, true);
  document.addEventListener("paste", pasted, true);

  // ---- Keys ------------------------------------------------------------------------------------------

  const focusBox = () => {
    // On a phone the keyboard would cover the answer.
    if (matchMedia("(pointer: fine)").matches) box()?.focus();
  };

  document.addEventListener("keypress", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.target !== box() || !held()) return;
    event.preventDefault(); // keep the text in the box
    event.stopPropagation();
  }, true);

  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.defaultPrevented || !shown()) return;
    if ($("dialog[open]") || document.activeElement?.getAttribute("aria-expanded") === "true") return;
    wait(null);
    answering()?.click();
  });

  // ---- Copying ---------------------------------------------------------------------------------------

  const source = (element) => element?.querySelector(".said, .source")?.textContent;

  function copied(button) {
    button.dataset.copied = "";
    setTimeout(() => delete button.dataset.copied, 2000);
  }

  async function copyOne(button) {
    await navigator.clipboard.writeText(source(button.closest(".message-content")));
    copied(button);
  }

  async function copyAll(button) {
    const said = [...document.querySelectorAll("#conversation .message-row")].flatMap((row) => {
      const words = source(row);
      const name = row.classList.contains("user-row") ? text("You") : text("Model");
      return words === undefined ? [] : [`${name}: ${words}`];
    });
    if (said.length === 0) return refuse("nothing");
    await navigator.clipboard.writeText(said.join("\n\n"));
    copied(button);
  }

  // ---- Enlarged image --------------------------------------------------------------------------------

  function enlarge(image) {
    const dialog = document.createElement("dialog");
    const close = document.createElement("button");
    const large = document.createElement("img");
    dialog.className = "enlarged";
    close.textContent = "×";
    close.setAttribute("aria-label", text("Close"));
    large.src = image.src;
    large.alt = image.alt;
    dialog.append(large, close);
    dialog.addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => dialog.remove());
    $("#conversation").parentElement.append(dialog);
    dialog.showModal();
  }

  // ---- Clicks ----------------------------------------------------------------------------------------

  document.addEventListener("click", (event) => {
    const on = (selector) => event.target.closest?.(selector);
    const picture = on("#conversation .message-row .image-container button, #conversation .message-row img");
    if (picture) {
      event.preventDefault();
      event.stopPropagation();
      return enlarge(picture.querySelector("img") ?? picture);
    }
    if (on("#conversation button.copy")) return copyOne(on("button.copy"));
    if (on("#copy-conversation")) return copyAll(on("#copy-conversation"));
    if (on("#question .submit-button") && held()) {
      event.preventDefault();
      event.stopPropagation();
    }
    if (on("#question .submit-button, #conversation .example")) return focusBox();
    const task = on("#tasks button")?.dataset.question;
    if (task === undefined) return;
    const thing = text("thing");
    write(task.replace("{thing}", thing), true);
    const start = task.indexOf("{thing}");
    if (start >= 0) box().setSelectionRange(start, start + thing.length);
  }, true);

  // ---- Names, and images that browsers cannot show ---------------------------------------------------

  document.addEventListener("error", (event) => {
    const thumbnail = event.target.closest?.("#question .thumbnail-item");
    if (!thumbnail || event.target.tagName !== "IMG") return;
    thumbnail.dataset.kind = decodeURIComponent(event.target.src).split(".").pop().slice(0, 5);
  }, true);

  const NAMES = [
    ["#question .submit-button", "title", "Send (Enter; Shift+Enter breaks the line)"],
    ["#question .stop-button", "title", "Stop (Escape)"],
    ["#question .upload-button", "title", "Add pictures; they can be pasted and dropped, too"],
    ["#question .delete-button", "title", "Remove this picture"],
    ["#question textarea", "aria-label", "Question"],
    ["#conversation .message-row .image-container button", "title", "Enlarge the picture"],
    ["#conversation .message-row .image-container button", "aria-label", "Enlarge the picture"],
    ["#conversation .message-row img", "alt", "Picture"],
  ];

  function name() {
    for (const [selector, attribute, english] of NAMES) {
      document.querySelectorAll(selector).forEach((found) => set(found, attribute, text(english)));
    }
    document.querySelectorAll("#conversation button.copy").forEach((button) => {
      const words = text("copied" in button.dataset ? "Copied" : "Copy");
      set(button, "title", words);
      set(button, "aria-label", words);
    });
    // Gradio uses the HTML of a message as its name; remove it, so that screen readers read the text.
    document
      .querySelectorAll("#conversation [data-testid=user][aria-label], #conversation [data-testid=bot][aria-label]")
      .forEach((message) => message.removeAttribute("aria-label"));
    const input = $("#question input[type=file]");
    if (input) set(input, "accept", "image/*,.heic,.heif,.avif,.tif,.tiff,.bmp");
  }

  let due = false;
  new MutationObserver(() => {
    if (due) return;
    due = true;
    setTimeout(() => {
      due = false;
      if (window.edgevlm?.text) name();
    });
  }).observe(document.documentElement, {
    subtree: true,
    childList: true,
    attributes: true,
    attributeFilter: ["aria-label", "class", "data-copied"],
  });

  window.edgevlm = Object.assign(window.edgevlm ?? {}, { attach });
})();
