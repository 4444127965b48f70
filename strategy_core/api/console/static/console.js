"use strict";
// The console works without this script. It logs in by link and keeps a page fresh.

// Login by link: the token stands behind #, and so in no server's log.
(() => {
  const form = document.getElementById("login");
  if (!form) return;
  const logIn = () => {
    const token = location.hash.slice(1);
    if (token.split(".").length !== 3) return;
    history.replaceState(null, "", location.pathname + location.search);
    form.elements.token.value = token;
    form.submit();
  };
  addEventListener("hashchange", logIn); // the link was opened in a tab that shows the login already
  logIn();
})();

// A busy server names the seconds to wait. Each wait in a row is longer, and they differ between browsers.
const LONGEST_WAIT_MS = 120_000;
const waitAfter = (answer, times) => {
  const seconds = Number(answer.headers.get("Retry-After")) || 2;
  return Math.min(LONGEST_WAIT_MS, 1000 * seconds * 2 ** times) * (1 + Math.random());
};

// Refresh: read the page again and replace the regions with `data-live` that have changed.
(() => {
  const EVERY_MS = 10_000;
  const freshness = document.getElementById("freshness");
  const announcement = document.getElementById("announcement");
  if (!document.querySelector("main [data-live]")) return;
  let etag = null, readAt = Date.now(), reading = false, problem = "", refused = 0, notBefore = 0;

  const announce = (text) => { if (announcement.textContent !== text) announcement.textContent = text; };
  const show = () => {
    const seconds = Math.round((Date.now() - readAt) / 1000);
    const age = seconds < 120 ? `${seconds} s` : `${Math.round(seconds / 60)} min`;
    freshness.hidden = false;
    freshness.classList.toggle("stopped", problem !== "");
    freshness.textContent = problem ? `${problem} What you see is ${age} old.` : `Last read ${age} ago. Read again every 10 s.`;
  };

  const fieldsOf = (region) => [...region.querySelectorAll("input[id], textarea[id], select[id]")];
  const swap = (old, fresh) => {
    if (old.innerHTML === fresh.innerHTML) return false;
    const active = document.activeElement;
    const focused = old.contains(active) ? active.id : "";
    const selection = focused && "selectionStart" in active ? [active.selectionStart, active.selectionEnd] : null;
    const typed = new Map(fieldsOf(old).map((field) => [field.id, [field.value, field.checked]]));
    const opened = new Map([...old.querySelectorAll("details[id]")].map((one) => [one.id, one.open]));
    old.replaceChildren(...fresh.childNodes);
    for (const field of fieldsOf(old)) {
      if (!typed.has(field.id)) continue;
      [field.value, field.checked] = typed.get(field.id);
    }
    for (const one of old.querySelectorAll("details[id]")) if (opened.has(one.id)) one.open = opened.get(one.id);
    if (focused) {
      const again = document.getElementById(focused);
      if (again) {
        again.focus({ preventScroll: true });
        if (selection && selection[0] !== null) again.setSelectionRange(...selection);
      }
    }
    return true;
  };

  const read = async () => {
    if (reading || document.hidden || Date.now() < notBefore) return;
    reading = true;
    try {
      const headers = etag ? { "If-None-Match": etag } : {};
      const answer = await fetch(location.href, { headers, cache: "no-store", signal: AbortSignal.timeout(8_000) });
      if (answer.status === 503) notBefore = Date.now() + EVERY_MS + waitAfter(answer, refused++);
      else refused = 0;
      if (answer.redirected || answer.status === 401) {
        problem = "You are logged out: open the page again.";
      } else if (answer.status === 304) {
        [problem, readAt] = ["", Date.now()];
      } else if (answer.status === 503) {
        problem = "The server is busy.";
      } else if (!answer.ok) {
        problem = `The server answers with an error (${answer.status}).`;
      } else {
        const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
        let changed = false;
        for (const old of document.querySelectorAll("[data-live][id]")) {
          const found = fresh.getElementById(old.id);
          if (found) changed = swap(old, found) || changed;
        }
        etag = answer.headers.get("ETag");
        const headline = document.querySelector("[data-headline]");
        if (changed && headline) announce(headline.textContent.trim());
        [problem, readAt] = ["", Date.now()];
      }
    } catch {
      problem = "The server does not answer.";
    } finally {
      reading = false;
    }
    if (problem) announce(problem);
    show();
  };

  setInterval(read, EVERY_MS);
  setInterval(() => { if (!document.hidden) show(); }, 1_000);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) read(); });
  show();
})();

// Parts that take longer: a link with `data-load` is replaced by the part `loaded` of its page.
(() => {
  const TRIES = 6;
  const load = async (place, times) => {
    const answer = await fetch(place.dataset.load, { cache: "no-store", signal: AbortSignal.timeout(60_000) });
    if (answer.status === 503 && times < TRIES) setTimeout(() => load(place, times + 1).catch(() => {}), waitAfter(answer, times));
    if (!answer.ok || answer.redirected) return;
    const found = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("loaded");
    if (found) place.replaceWith(found);
  };
  for (const place of document.querySelectorAll("[data-load]")) load(place, 0).catch(() => {}); // the link stays
})();

// Preview: a form with `data-preview` shows the region `preview` of that page while one types. One request at a time.
(() => {
  const form = document.querySelector("form[data-preview]");
  const region = document.getElementById("preview");
  if (!form || !region) return;
  const WAIT_MS = 400;
  let timer = 0, reading = false, again = false, busy = 0;

  const read = async () => {
    if (reading) { again = true; return; }
    [reading, again] = [true, false];
    region.setAttribute("aria-busy", "true");
    try {
      const query = new URLSearchParams(new FormData(form));
      const answer = await fetch(`${form.dataset.preview}?${query}`, { cache: "no-store", signal: AbortSignal.timeout(60_000) });
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const found = page.getElementById("preview"), refused = page.querySelector(".refused");
      if (answer.status === 503) timer = setTimeout(read, waitAfter(answer, busy++));
      else busy = 0;
      if (busy) region.textContent = "The server is busy. The preview is tried again.";
      else if (answer.redirected) region.textContent = "You are logged out: open the page again.";
      else if (found && (answer.ok || answer.status === 422)) region.replaceChildren(...found.childNodes);
      else region.replaceChildren(refused || "The preview cannot be read now.");
    } catch {
      region.textContent = "The server does not answer.";
    } finally {
      reading = false;
      region.removeAttribute("aria-busy");
    }
    if (again) read();
  };

  form.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(read, WAIT_MS); });
  document.getElementById("show-preview").hidden = true;
  read();
})();
