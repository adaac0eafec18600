// Keeps what was typed into a form while a session ends and somebody signs in again. A draft is in
// sessionStorage, so it belongs to this tab. It lives while the tab is at its form, at the login
// page or at a page that says what went wrong, and is gone on any other page: the form succeeded,
// or was left. Tokens, passwords, files and hidden fields are never kept.

const PREFIX = "shorthorn-draft:";
const TYPES = ["text", "url", "search", "number", "textarea", "checkbox", "radio", "select-one"];
const isLogin = location.pathname === "/login";
const keyOf = (form) => PREFIX + form.getAttribute("action");
const forms = () => [...document.querySelectorAll("form[data-draft]")];
const fieldsOf = (form) => [...form.elements].filter((f) => f.name && TYPES.includes(f.type));
const isChoice = (field) => field.type === "checkbox" || field.type === "radio";

function save(form) {
  const kept = fieldsOf(form).map((f) => [f.name, f.value, isChoice(f) && f.checked]);
  sessionStorage.setItem(keyOf(form), JSON.stringify(kept));
}

function restore(form) {
  const kept = JSON.parse(sessionStorage.getItem(keyOf(form)) ?? "[]");
  for (const field of fieldsOf(form)) {
    const same = ([name, value]) => name === field.name && (!isChoice(field) || value === field.value);
    const [, value, checked] = kept.find(same) ?? [field.name, field.value, field.checked];
    if (isChoice(field) ? field.checked === checked : field.value === value) continue;
    if (isChoice(field)) field.checked = checked;
    else field.value = value;
    field.closest("details")?.setAttribute("open", "");
    field.dispatchEvent(new Event("input", { bubbles: true }));
  }
}

function forget(isKept) {
  const keys = Object.keys(sessionStorage).filter((key) => key.startsWith(PREFIX));
  for (const key of keys) if (!isKept(key)) sessionStorage.removeItem(key);
}

document.addEventListener("input", (event) => {
  if (event.target.form?.matches("[data-draft]")) save(event.target.form);
});
document.addEventListener("submit", (event) => {
  if (event.target.matches("[data-draft]")) save(event.target);
  if (event.target.getAttribute("action") === "/logout") forget(() => false);
}, true);

// After htmx has seen the form as it came, so that it takes what is restored for typed.
document.addEventListener("DOMContentLoaded", () => {
  if (isLogin) return;
  const here = forms().map(keyOf);
  if (!document.querySelector("[data-keep-drafts]")) forget((key) => here.includes(key));
  forms().forEach(restore);
});

// --- a piece of the page was asked for without a session: the page stays as it is
const ended = document.getElementById("ended");
document.addEventListener("htmx:afterRequest", (event) => {
  const status = event.detail.xhr?.status;
  if (!ended) return;
  if (status === 401) {
    forms().forEach(save);
    const here = encodeURIComponent(location.pathname + location.search);
    ended.querySelector("a").href = `/login?ended=1&next=${here}`;
    ended.hidden = false;
  } else if (status) {
    ended.hidden = true;
  }
});

// --- the login page of a tab goes on by itself when a session was begun in another one
const waiting = document.querySelector("[data-next]");
document.addEventListener("visibilitychange", async () => {
  if (!waiting || document.hidden) return;
  const answer = await fetch("/session", { headers: { Accept: "application/json" } }).catch(() => null);
  if (answer?.ok) location.replace(waiting.dataset.next);
});
