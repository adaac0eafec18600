// Questions that are pages of their own, asked in place: a link with `data-dialog` opens what it
// leads to as a modal dialog. Without this file, and wherever anything is unusual (a session that
// ended, an object that is gone, a server that does not answer), the link is just followed.
//
// The browser does the rest: focus stays inside, Escape closes, what is behind is inert.

const ASKED = { "X-Dialog": "1" };
let opening = false;

document.addEventListener("click", async (event) => {
  const link = event.target.closest("a[data-dialog]");
  const isPlain = event.button === 0 && !(event.ctrlKey || event.metaKey || event.shiftKey || event.altKey);
  if (!link || !isPlain || event.defaultPrevented) return;
  event.preventDefault();
  if (opening) return;
  opening = true;
  try {
    const answer = await fetch(link.href, { headers: ASKED });
    const isQuestion = answer.ok && !answer.redirected && answer.headers.get("X-Dialog") === "1";
    if (!isQuestion) throw new Error("not a question");
    show(await answer.text(), link.id);
  } catch {
    location.assign(link.href);
  } finally {
    opening = false;
  }
});

function show(markup, openerId) {
  const dialog = document.createElement("dialog");
  dialog.setAttribute("aria-labelledby", "dialog-title");
  dialog.setAttribute("aria-describedby", "consequences");
  dialog.innerHTML = markup; // of our own server, which escapes what is in it
  // Outside of what the page fetches anew by itself: a question stays while the rest changes.
  document.body.append(dialog);
  dialog.addEventListener("close", () => {
    dialog.remove();
    // The opener may be another element of the same id by now, or gone with what it was for.
    (document.getElementById(openerId) ?? document.getElementById("main")).focus();
  });
  dialog.showModal();
}

// A page that the browser had kept is shown again as it was left: without its question.
window.addEventListener("pageshow", (event) => {
  if (event.persisted) document.querySelector("dialog[open]")?.close();
});
