"use strict";
(() => {
  const page = document.documentElement;
  page.dataset.script = "on";

  // Who asked for less motion gets still pictures, and flicker only on request.
  const less = window.matchMedia("(prefers-reduced-motion: reduce)");
  if (less.matches) document.getElementById("mode-side").checked = true;
  page.dataset.motion = "chosen";

  document.addEventListener("input", (event) => {
    if (event.target.classList.contains("wipe")) {
      event.target.parentElement.style.setProperty("--cut", event.target.value + "%");
    }
  });

  const copied = document.getElementById("copied");
  const selectAndCopy = (source) => {
    const hidden = source.hidden;
    source.hidden = false;
    window.getSelection().selectAllChildren(source);
    const done = document.execCommand("copy");
    window.getSelection().removeAllRanges();
    source.hidden = hidden;
    return done;
  };
  for (const button of document.querySelectorAll("[data-copy]")) {
    const label = button.innerHTML;
    button.addEventListener("click", async () => {
      const source = document.getElementById(button.dataset.copy);
      let done = true;
      try {
        await navigator.clipboard.writeText(source.textContent);
      } catch {
        done = selectAndCopy(source);
      }
      copied.textContent = done ? "Copied to the clipboard." : "Copying failed; select the text instead.";
      button.textContent = done ? "Copied" : "Select and copy by hand";
      window.setTimeout(() => {
        button.innerHTML = label;
        copied.textContent = "";
      }, 2000);
    });
  }

  // The contents mark the section that is being read.
  const links = new Map();
  for (const link of document.querySelectorAll(".contents a")) links.set(link.hash.slice(1), link);
  const places = [...links.keys()].map((id) => document.getElementById(id)).filter(Boolean);
  let current = null;
  const mark = () => {
    let found = places[0];
    for (const place of places) if (place.getBoundingClientRect().top < 160) found = place;
    const link = found && links.get(found.id);
    if (link === current) return;
    if (current) current.removeAttribute("aria-current");
    current = link;
    if (!link) return;
    link.setAttribute("aria-current", "location");
    const nav = link.closest(".contents");
    if (nav.scrollHeight > nav.clientHeight) {
      const middle = link.offsetTop - nav.clientHeight / 2;
      nav.scrollTop = middle > 0 ? middle : 0;
    }
  };
  let waiting = false;
  window.addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    window.requestAnimationFrame(() => {
      waiting = false;
      mark();
    });
  }, { passive: true });
  mark();
})();
