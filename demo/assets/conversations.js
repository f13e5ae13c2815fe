// The list of conversations: its buttons, renaming in place, and times in the browser's language.
(() => {
  const LIST = "#conversation-list";

  function tell(element, detail) {
    // demo/conversations.py listens for it in the list's component.
    element.dispatchEvent(new CustomEvent("conversation", {bubbles: true, detail}));
  }

  function rename(item) {
    const shown = item.querySelector(".open");
    const input = document.createElement("input");
    input.className = "rename";
    input.value = item.dataset.title;
    input.maxLength = 100;
    input.setAttribute("aria-label", item.querySelector("[data-action=edit]").getAttribute("aria-label"));
    let ended = false;
    const end = (save) => {
      if (ended) return;
      ended = true;
      const title = input.value.trim();
      const focused = document.activeElement === input;
      input.remove();
      shown.hidden = false;
      if (focused) shown.focus();
      if (save && title && title !== item.dataset.title) {
        tell(item, {action: "edit", id: item.dataset.id, title});
      }
    };
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === "Escape") {
        event.preventDefault();
        event.stopPropagation();
        end(event.key === "Enter");
      }
    });
    input.addEventListener("blur", () => end(true));
    shown.hidden = true;
    item.append(input);  // last: Gradio's updates of the list do not touch it there
    input.focus();
    input.select();
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest(`${LIST} button[data-action]`);
    if (!button) return;
    const item = button.closest("li");
    if (button.dataset.action === "edit") {
      rename(item);
    } else {
      tell(item, {action: button.dataset.action, id: item.dataset.id});
    }
  });

  // Show changes of other tabs when this tab becomes visible.
  window.addEventListener("focus", () => {
    const list = document.querySelector(`${LIST} .edgevlm`);
    if (list) tell(list, {action: "focus"});
  });

  customElements.define("local-time", class extends HTMLElement {
    static observedAttributes = ["datetime"];
    attributeChangedCallback() {
      const time = new Date(this.getAttribute("datetime"));
      const today = time.toDateString() === new Date().toDateString();
      const style = today ? {timeStyle: "short"} : {dateStyle: "medium", timeStyle: "short"};
      this.textContent = time.toLocaleString(navigator.language, style);
      this.title = time.toLocaleString(navigator.language, {dateStyle: "full", timeStyle: "long"});
    }
  });
})();
