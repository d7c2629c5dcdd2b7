"use strict";
(() => {
  const less = window.matchMedia("(prefers-reduced-motion: reduce)");
  const page = document.documentElement;
  page.dataset.script = "on";
  page.dataset.motion = "chosen";
  const side = document.getElementById("mode-side");
  if (less.matches && side) side.checked = true;

  // Who asked for less motion sees stills; the answer says so.
  const mark = () => {
    if (less.matches) for (const field of document.querySelectorAll("[data-stills]")) field.value = "1";
  };
  mark();

  const toast = document.getElementById("toast");
  let hiding = 0;
  const say = (text) => {
    window.clearTimeout(hiding);
    toast.textContent = text;
    toast.hidden = false;
    hiding = window.setTimeout(() => { toast.hidden = true; }, 8000);
  };

  // A slider says where it stands before the picture has followed.
  document.addEventListener("input", (event) => {
    const moved = event.target;
    if (moved.classList.contains("wipe")) {
      moved.parentElement.style.setProperty("--cut", moved.value + "%");
      event.stopPropagation();
    } else if (moved.type === "range") {
      const amount = Number(moved.value);
      moved.style.setProperty("--at", amount);
      const shown = document.querySelector(`output[for="${moved.id}"]`);
      if (shown) shown.textContent = (amount > 0 ? "+" : "") + amount + " %";
      const said = document.querySelector(".said");
      if (said) said.textContent = "";
    }
  }, true);
  document.addEventListener("dblclick", (event) => {
    if (event.target.type !== "range" || event.target.classList.contains("wipe")) return;
    event.target.value = 0;
    event.target.dispatchEvent(new Event("input", { bubbles: true }));
  });

  // Until an answer is chosen there is nothing to send; what is being sent is not sent twice.
  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.dataset.sent && !form.hasAttribute("hx-post")) event.preventDefault();
    form.dataset.sent = "yes";
  });
  window.addEventListener("pageshow", () => {
    for (const form of document.forms) delete form.dataset.sent;
  });

  document.addEventListener("htmx:afterSwap", (event) => {
    mark();
    // Of what came, not of what went.
    const heading = event.detail.target.id === "main" && document.querySelector("#main [data-focus]");
    if (heading) {
      heading.focus({ preventScroll: true });
      window.scrollTo(0, 0);
    }
  });
  document.addEventListener("htmx:responseError", (event) => {
    const text = event.detail.xhr.responseText;
    const plain = (event.detail.xhr.getResponseHeader("content-type") || "").startsWith("text/plain");
    say(plain && text.length < 300 ? text : "That did not work; reload the page and try again.");
  });
  for (const name of ["htmx:sendError", "htmx:timeout"]) {
    document.addEventListener(name, () => say("No connection. Nothing was lost; try again in a moment."));
  }

  // Copy buttons of addresses and commands.
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    try {
      await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
      say("Copied.");
    } catch {
      say("Copying failed; select the text instead.");
    }
  });
})();
