// Parts of the whole page: language, tabs in the address, names for screen readers, notices, and a message
// when the server has ended. Loaded before the scripts of the tabs.
(() => {
  "use strict";

  const language = navigator.language.toLowerCase().startsWith("ru") ? "ru" : "en";
  const table = window.gradio_config?.i18n_translations?.[language] ?? {};

  /** Return a text of demo/russian.py in the page's language, with `values` in its {fields}. */
  const text = (english, values = {}) =>
    Object.entries(values).reduce(
      (made, [name, value]) => made.replaceAll(`{${name}}`, value),
      table[english] ?? english,
    );

  const tabButton = (id) => document.querySelector(`#tabs [role="tab"][data-tab-id="${CSS.escape(id)}"]`);

  window.edgevlm = { language, text, openTab: (id) => tabButton(id)?.click() };

  // ---- Tabs: their address, and the arrow keys -------------------------------------------------------

  const tabs = () => [...document.querySelectorAll('#tabs [role="tab"]')];
  const selected = () => document.querySelector('#tabs [role="tab"][aria-selected="true"]')?.dataset.tabId;

  /** Return the tab that the address names; the first one if it names none. */
  const addressed = () => {
    const id = location.hash.slice(1) || tabs()[0]?.dataset.tabId;
    return id && tabButton(id) ? id : undefined;
  };

  let shown; // the tab of the last update of the address

  function followAddress() {
    shown = addressed() ?? selected();
    if (shown !== selected()) tabButton(shown).click();
  }

  function keepAddress() {
    const now = selected();
    if (now === undefined || now === shown) return;
    if (now !== addressed()) history.pushState(null, "", `#${now}`);
    shown = now;
  }

  function moveAmongTabs(event) {
    const tab = event.target.closest?.('#tabs [role="tab"]');
    if (!tab || event.altKey || event.ctrlKey || event.metaKey) return;
    const all = tabs();
    const at = all.indexOf(tab);
    const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    const target = all[(next + all.length) % all.length];
    target.click();
    target.focus();
  }

  // ---- Names and roles -------------------------------------------------------------------------------

  // Names that Gradio shows in English in all languages.
  const GRADIO_NAMES = [
    "Chat", "Close", "Copy message", "Download", "Empty value", "Exit fullscreen mode", "Fullscreen",
    "Multimedia input field", "Remove file", "Reset to default value", "Scroll down", "Stop", "Submit",
    "Upload a file", "Uploaded files", "Uploading", "chatbot conversation", "clear input",
  ];
  const GRADIO_PATTERNS = [
    [/^number input for (?<name>.+)$/s, "{name}: number"],
    [/^range slider for (?<name>.+)$/s, "{name}: slider"],
    [/^Select example \d+: (?<name>.+)$/s, "Example: {name}"],
    [/^user's message: (?<name>.*)$/s, "Question: {name}"],
    [/^bot's message: (?<name>.*)$/s, "Answer: {name}"],
  ];

  function named(name) {
    if (GRADIO_NAMES.includes(name)) return text(name);
    for (const [pattern, key] of GRADIO_PATTERNS) {
      const found = pattern.exec(name);
      if (found) return text(key, found.groups);
    }
    return name;
  }

  function set(element, attribute, value) {
    if (element.getAttribute(attribute) !== value) element.setAttribute(attribute, value);
  }

  /** Corrections of Gradio's elements: selector, and a function for each element. */
  const REPAIRS = [
    ["[aria-label]", (it) => set(it, "aria-label", named(it.getAttribute("aria-label")))],
    ["[title]", (it) => set(it, "title", named(it.getAttribute("title")))],
    // Roles of lists whose children are buttons, and of items outside of a list.
    [".examples[role=list]", (it) => set(it, "role", "group")],
    [".thumbnails > [role=listitem]", (it) => set(it, "role", "group")],
    [".image-container > button:not([aria-label])", (it) => set(it, "aria-label", text("Picture"))],
    // A button inside a link: keep the link only, with the name of the button.
    ["a.download-link > button:not([inert])", (it) => {
      set(it.parentElement, "aria-label", it.ariaLabel);
      it.inert = true;
    }],
    [".label-wrap", (it) => set(it, "aria-expanded", String(it.classList.contains("open")))],
    [".label-wrap > .icon", (it) => set(it, "aria-hidden", "true")],
    ['#tabs [role="tab"]', (it) => set(it, "tabindex", it.ariaSelected === "true" ? "0" : "-1")],
    [".empty[aria-label]:not([role])", (it) => set(it, "role", "img")],
    ["#tabs [role=tabpanel]", (it) => set(it, "aria-labelledby", `${it.id}-button`)],
    // Screen readers announce changes of a live region, but perhaps not a region that is new.
    [".toast-wrap", (it) => { set(it, "role", "status"); set(it, "aria-live", "polite"); }],
    [".toast-body", (it) => { it.removeAttribute("role"); it.removeAttribute("aria-live"); }],
    [".toast-header", (it) => { it.removeAttribute("role"); it.removeAttribute("tabindex"); }],
  ];

  function repair() {
    set(document.documentElement, "lang", language);
    for (const [selector, mend] of REPAIRS) document.querySelectorAll(selector).forEach(mend);
    keepAddress();
  }

  let due = false;
  new MutationObserver(() => {
    if (due) return;
    due = true;
    setTimeout(() => { due = false; repair(); });
  }).observe(document.documentElement, {
    subtree: true,
    childList: true,
    attributes: true,
    attributeFilter: ["aria-label", "aria-selected", "class", "lang", "title"],
  });

  // ---- Notices: Escape closes them, before anything else that Escape does ----------------------------

  function closeNotices(event) {
    const closing = document.querySelectorAll(".toast-close");
    if (event.key !== "Escape" || closing.length === 0) return;
    closing.forEach((button) => button.click());
    event.stopPropagation();
    event.preventDefault();
  }

  // ---- The server has ended --------------------------------------------------------------------------

  const SECONDS_BETWEEN_LOOKS = 5;
  const ask = window.fetch.bind(window);

  async function isThere() {
    try {
      const answer = await ask("gradio_api/app_id", { cache: "no-store" });
      return (await answer.json()).app_id === window.gradio_config.app_id ? "same" : "another";
    } catch {
      return "gone";
    }
  }

  function sayGone() {
    // Gradio would try again every two seconds, with an error in the console each time.
    window.fetch = () => Promise.reject(new TypeError("the server has gone away"));
    const dialog = document.createElement("dialog");
    dialog.id = "gone";
    dialog.setAttribute("aria-labelledby", "gone-title");
    const [title, what, again] = ["h2", "p", "button"].map((tag) => document.createElement(tag));
    title.id = "gone-title";
    title.textContent = text("The demo has ended");
    what.textContent = text("Nothing answers at this address any more. Start edgevlm demo again, then go on here.");
    again.textContent = text("Try again");
    again.className = "primary lg";
    dialog.append(title, what, again);
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    const look = async () => {
      if ((await isThere()) !== "gone") location.reload();
      else what.textContent = text("Still nothing answers. Start edgevlm demo again on the same port.");
    };
    again.addEventListener("click", look);
    document.querySelector(".gradio-container").append(dialog);
    dialog.showModal();
  }

  async function watchServer() {
    const state = document.hidden ? "same" : await isThere();
    if (state === "another") location.reload();
    else if (state === "gone") sayGone();
    else setTimeout(watchServer, SECONDS_BETWEEN_LOOKS * 1000);
  }

  // ---- Start -----------------------------------------------------------------------------------------

  followAddress();
  repair();
  window.addEventListener("popstate", followAddress);
  document.addEventListener("keydown", moveAmongTabs);
  window.addEventListener("keydown", closeNotices, true);
  setTimeout(watchServer, SECONDS_BETWEEN_LOOKS * 1000);
})();
