// What every page does beyond its forms and links: theme, ages, copying, and its event stream.
// Everything works without this file but live changes, copying and the theme's toggle.

const root = document.documentElement;
root.classList.add("scripted");

// --- ages: "3m", counted on from the time in the markup, without asking anybody
const UNITS = [[120, 1, "s"], [7200, 60, "m"], [172800, 3600, "h"], [Infinity, 86400, "d"]];
function showAges(scope) {
  for (const element of scope.querySelectorAll("time[data-age]")) {
    const seconds = Math.max(0, (Date.now() - Date.parse(element.dateTime)) / 1000);
    const [, size, unit] = UNITS.find(([limit]) => seconds < limit);
    const text = Math.floor(seconds / size) + unit;
    if (element.textContent !== text) element.textContent = text;
  }
}
setInterval(() => { if (!document.hidden) showAges(document); }, 1000);

// --- copying
function showCopyButtons(scope) {
  if (!navigator.clipboard) return;
  for (const button of scope.querySelectorAll("button[data-copy]")) button.hidden = false;
}
document.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-copy]");
  if (!button) return;
  await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
  announce("Copied");
  const label = button.firstChild;
  const before = label.textContent;
  if (before === "Copied") return;
  label.textContent = "Copied";
  setTimeout(() => { label.textContent = before; }, 1500);
});

export function announce(text) {
  const place = document.getElementById("announce");
  place.textContent = "";
  requestAnimationFrame(() => { place.textContent = text; });
}

// --- light and dark: what the system says, until somebody chooses
const toggle = document.getElementById("theme");
toggle.hidden = false;
toggle.addEventListener("click", () => {
  const isDark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = isDark ? "light" : "dark";
  document.cookie = `theme=${root.dataset.theme}; path=/; max-age=31536000; samesite=strict`;
  announce(`Theme: ${root.dataset.theme}`);
});

// --- a form that came back says why, and keyboards start there
document.getElementById("problem")?.focus();

// --- names are suggested from a URL or a file, until somebody types one
let nameIsOurs = !document.getElementById("name")?.value;
document.getElementById("name")?.addEventListener("input", () => { nameIsOurs = false; });
document.addEventListener("input", (event) => {
  const source = event.target.closest("[data-suggest-name]");
  const name = document.getElementById("name");
  if (!source || !name || !nameIsOurs) return;
  const path = source.type === "file" ? source.files[0]?.name : source.value.split(/[?#]/)[0];
  const last = (path ?? "").replace(/\/+$/, "").split("/").pop();
  name.value = last.toLowerCase().replace(/\.(qcow2|qcow2c|raw|img|iso)$/, "")
    .replace(/[^a-z0-9.-]+/g, "-").replace(/^[^a-z0-9]+|[^a-z0-9]+$/g, "").slice(0, 200);
});

// --- verdicts that are asked for while somebody types: none stays beside a text that it is not about
const ASKER = "[hx-post][hx-trigger^='input']";
const lastTexts = new WeakMap();
document.addEventListener("input", (event) => {
  const field = event.target;
  const asker = field.closest(ASKER);
  if (!asker || lastTexts.get(field) === field.value) return;
  lastTexts.set(field, field.value);
  window.htmx.trigger(asker, "htmx:abort"); // an answer on its way is about the text before
  document.querySelector(asker.getAttribute("hx-target")).replaceChildren();
});
document.addEventListener("htmx:responseError", (event) => {
  if (event.detail.xhr.status === 401) return; // drafts.js tells that the session has ended
  const answer = new DOMParser().parseFromString(event.detail.xhr.responseText, "text/html");
  const sentence = answer.querySelector("main p")?.textContent;
  sayAtVerdict(event, sentence || `The server answered ${event.detail.xhr.status}.`);
});
document.addEventListener("htmx:sendError", (event) => {
  sayAtVerdict(event, "Nobody answered. Try again as soon as the connection is back.");
});
function sayAtVerdict(event, sentence) {
  const asker = event.detail.requestConfig.elt;
  if (!asker.matches(ASKER)) return;
  const problem = document.createElement("p");
  problem.className = "problem";
  problem.setAttribute("role", "alert");
  problem.textContent = `This could not be checked. ${sentence}`;
  document.querySelector(asker.getAttribute("hx-target")).replaceChildren(problem);
}

// --- the event stream: htmx's extension opens it; here is what it means for the page
const connection = document.getElementById("connection");
let source = null;
let patience = 0;

document.addEventListener("htmx:sseOpen", (event) => {
  source = event.detail.source;
  clearTimeout(patience);
  patience = 0;
  connection.hidden = true;
  source.addEventListener("end", toLogin);
});
document.addEventListener("htmx:sseError", async () => {
  if (!patience) patience = setTimeout(() => { connection.hidden = false; }, 3000);
  if (source && source.readyState !== EventSource.CLOSED) return;
  const answer = await fetch("/session", { headers: { Accept: "application/json" } }).catch(() => null);
  if (answer && answer.status === 401) toLogin();
});
function toLogin() {
  source?.close();
  const ended = new CustomEvent("shorthorn:ended", { cancelable: true });
  if (!document.dispatchEvent(ended)) return; // somebody's file would be lost with this page
  location.assign(`/login?ended=1&next=${encodeURIComponent(location.pathname + location.search)}`);
}

// A row may be told before the page has fetched the list that it is new in. It is left out, and the
// list fetched once more: the one on its way may have been made before this change.
document.addEventListener("htmx:sseBeforeMessage", (event) => {
  const told = document.createElement("template");
  told.innerHTML = event.detail.data;
  const rows = [...told.content.querySelectorAll("[hx-swap-oob][id]")];
  const unknown = rows.filter((row) => !document.getElementById(row.id));
  if (!unknown.length) return;
  event.preventDefault();
  for (const row of unknown) row.remove();
  window.htmx.swap(event.target, told.innerHTML, { swapStyle: "none" });
  const list = document.querySelector("[hx-trigger='sse:list']");
  if (list) window.htmx.trigger(list, "sse:list");
});

// A browser has six connections for all tabs of a site: a hidden page gives its stream back. The
// mark in its address tells the server what the page has seen, so nothing is missed.
document.addEventListener("visibilitychange", () => {
  const live = document.querySelector("[data-live]");
  if (!live || !source) return;
  if (document.hidden) {
    source.close();
  } else if (source.readyState === EventSource.CLOSED) {
    const again = live.cloneNode(true);
    live.replaceWith(again);
    window.htmx.process(again);
  }
});

// A part of a page that comes anew as it was stays untouched; in another one, what was open is open.
document.addEventListener("htmx:oobBeforeSwap", (event) => {
  const { target, fragment } = event.detail;
  if (fragment.id === "count" && fragment.innerHTML === target.innerHTML) {
    event.detail.shouldSwap = false; // it would be announced once more
  }
  const next = fragment.firstElementChild;
  if (!next?.dataset.print) return;
  if (next.dataset.print === target.dataset.print) event.detail.shouldSwap = false;
  for (const details of target.querySelectorAll("details[id]")) {
    next.querySelector(`#${CSS.escape(details.id)}`)?.toggleAttribute("open", details.open);
  }
});
// Where what the parts tell of is gone, all of the page says so.
document.addEventListener("htmx:beforeSwap", (event) => {
  const { requestConfig, xhr } = event.detail;
  if (requestConfig.elt.matches("[data-parts]") && xhr.status === 404) {
    event.detail.swapOverride = "outerHTML";
  }
});

document.addEventListener("htmx:afterSwap", (event) => refresh(event.target));
document.addEventListener("htmx:oobAfterSwap", (event) => refresh(event.detail.target));
document.addEventListener("htmx:load", (event) => refresh(event.detail.elt));
function refresh(scope) {
  const whole = scope?.isConnected ? scope.parentElement ?? scope : document;
  showAges(whole);
  showCopyButtons(whole);
}
refresh(document.body);
