// Sends a file in pieces (the core of tus 1.0.0): with progress, pause, and going on where it
// stopped, after a lost connection as after a reload, if the file is the one that was begun with.
// Only one piece is in memory at a time, and that one belongs to the browser: a Blob's slice is read
// while it is sent.

import {
  discard, findPlace, findState, makeImage, sendPiece, startAnew, Trouble,
} from "./upload_client.js";
import {
  differenceOf, duration, forget, inWords, knownFile, noteOf, remember, sampleOf,
} from "./upload_file.js";

const PIECE_BYTES = 32 * 1024 * 1024;
const RETRY_MS = [500, 1000, 2000, 4000, 8000, 15000];
const PASSING = [0, 408, 409, 423, 429, 502, 503, 504];
const ATTEMPTS = 40;

class Upload {
  constructor(place) {
    this.place = place;
    this.run = 0; // of `go`; what an older one finds out does not count any more
    this.timer = 0;
    this.running = false;
    this.isHeld = false; // somebody goes on here: the page must not be replaced
    this.file = null;
    const piece = (selector) => place.querySelector(selector);
    this.panel = piece("[data-upload-running]");
    this.bar = this.panel.querySelector("progress");
    this.figures = piece("[data-upload-figures]");
    this.problem = piece("[data-upload-problem]");
    this.question = piece("[data-upload-question]");
    this.controls = piece("[data-upload-controls]");
    this.pauseButton = piece("[data-upload-pause]");
    this.pauseButton.addEventListener("click", () => (this.running ? this.pause() : this.go()));
    piece("[data-upload-keep]").addEventListener("click", () => this.keep());
    piece("[data-upload-discard]").addEventListener("click", () => this.askToDiscard());
    window.addEventListener("online", () => { if (this.timer) this.go(); });
    window.addEventListener("beforeunload", (event) => { if (this.running) event.preventDefault(); });
    // Somebody who signs in elsewhere goes on here, with the file that was chosen.
    document.addEventListener("shorthorn:ended", (event) => {
      if (this.isHeld && place.isConnected) event.preventDefault();
    });
  }

  start(file, name, url) {
    Object.assign(this, { file, name, url, offset: 0, failures: 0 });
    this.isConfirmed = this.isRenewed = false;
    this.question.hidden = true;
    this.go();
  }

  async go() {
    const run = this.begin();
    try {
      await this.carryOn(run);
    } catch (error) {
      if (run === this.run) this.fail(error);
    }
  }

  begin() {
    clearTimeout(this.timer);
    this.timer = 0;
    this.running = this.isHeld = true;
    this.samples = [];
    this.bar.max = this.file.size;
    this.bar.value = this.offset;
    this.panel.hidden = this.controls.hidden = false;
    this.problem.hidden = true;
    this.pauseButton.hidden = false;
    this.pauseButton.textContent = "Pause";
    this.enableFields(false);
    return ++this.run;
  }

  async carryOn(run) {
    await this.file.slice(0, 1).arrayBuffer(); // says when it cannot be read any more
    const told = await findState(this.name);
    if (run !== this.run) return;
    if (!told.awaits) { this.wait(told); return; }
    const place = await findPlace(this.url);
    const isSame = await this.isSame(place, run);
    if (!isSame || run !== this.run) return;
    remember(this.name, this.file);
    this.offset = place.offset;
    while (this.offset < this.file.size) {
      const piece = this.file.slice(this.offset, this.offset + PIECE_BYTES);
      this.request = new XMLHttpRequest();
      const reached = await sendPiece(
        this.request, this.url, this.offset, piece, (done) => this.show(done),
      );
      if (run !== this.run) return;
      this.offset = reached;
      this.failures = 0;
      this.isRenewed = false;
    }
    this.finish();
  }

  // Whether what has arrived is the beginning of the file; asks where only a human can know.
  async isSame(place, run) {
    if (!place.offset) return true;
    const own = await sampleOf(this.file, place.offset);
    if (run !== this.run) return false;
    this.offset = place.offset;
    const known = knownFile(this.name);
    const difference = known ? differenceOf(known, this.file) : "";
    const anew = ["Start anew with this file", () => this.startAnew()];
    if (place.sample && own && own !== place.sample) {
      const sent = `the ${inWords(place.offset)} that were sent are not its beginning`;
      this.hold(`This is another file: ${sent}. Choose the right one, or start anew.`, [anew]);
      return false;
    }
    const isCompared = Boolean(place.sample && own);
    if (this.isConfirmed || (!difference && (isCompared || known))) return true;
    const same = ["It is the same file", () => { this.isConfirmed = true; this.go(); }];
    const why = difference || "This browser cannot compare it with what was sent.";
    this.hold(`${why} Is it the same file?`, [same, anew]);
    return false;
  }

  pause() {
    this.stop();
    this.figures.textContent = `Paused at ${inWords(this.offset)} of ${inWords(this.file.size)}.`;
    this.pauseButton.textContent = "Go on";
  }

  // End what is under way; what is durable stays.
  stop() {
    this.run += 1;
    this.running = false;
    this.request?.abort();
    clearTimeout(this.timer);
    this.timer = 0;
    this.bar.value = this.offset;
    this.enableFields(true);
  }

  // Stop for a question.
  hold(text, answers) {
    this.stop();
    this.figures.textContent = "";
    this.pauseButton.hidden = true;
    this.ask(text, answers);
  }

  ask(text, answers) {
    this.question.querySelector("p").textContent = text;
    const buttons = answers.map(([label, act]) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = label;
      button.addEventListener("click", () => { this.question.hidden = true; act(); });
      return button;
    });
    this.question.querySelector(".actions").replaceChildren(...buttons);
    this.question.hidden = false;
    buttons[0].focus();
  }

  keep() {
    this.stop();
    const detail = `/images/${this.name}`;
    location.assign(location.pathname === detail ? "/images" : detail);
  }

  askToDiscard() {
    const keep = ["Keep it", () => {}];
    const text = `Discard ${this.name}? The image and what has arrived of it are removed.`;
    this.ask(text, [keep, ["Discard it", () => this.discard()]]);
  }

  async discard() {
    this.stop();
    try {
      await discard(this.name);
      forget(this.name);
      location.assign("/images");
    } catch (error) {
      this.tell("The image was not discarded", error);
    }
  }

  async startAnew() {
    const run = this.begin();
    this.pauseButton.hidden = true;
    this.figures.textContent = "What has arrived is being removed…";
    try {
      await startAnew(this.name, this.url);
      forget(this.name);
      if (run === this.run) this.start(this.file, this.name, this.url);
    } catch (error) {
      if (run === this.run) this.fail(error);
    }
  }

  // Nobody takes bytes yet: say why, and ask again (the server waits a moment with its answer).
  wait(told) {
    if (told.state === "failed") throw new Trouble(told.message || "the image has failed", 422);
    if (told.state === "deleting") throw new Trouble("the image is being deleted", 422);
    const link = document.createElement("a");
    link.href = `/images/${this.name}`;
    link.target = "_blank";
    link.textContent = "The image's page";
    const why = told.message || "a pool is being looked for";
    const text = `Waiting: ${why}. It begins by itself. `;
    if (!this.figures.textContent.startsWith(text)) this.figures.replaceChildren(text, link);
    this.timer = setTimeout(() => this.go(), RETRY_MS[0]);
  }

  show(done) {
    this.bar.max = this.file.size;
    this.bar.value = done;
    const now = performance.now() / 1000;
    this.samples.push([now, done]);
    while (this.samples.length > 2 && now - this.samples[0][0] > 8) this.samples.shift();
    const [at, then] = this.samples[0];
    const rate = now > at ? (done - then) / (now - at) : 0;
    const left = rate > 0 ? `, ${inWords(rate)}/s, ${duration((this.file.size - done) / rate)} left` : "";
    if (now - (this.toldAt ?? 0) < 0.5) return;
    this.toldAt = now;
    this.figures.textContent = `${inWords(done)} of ${inWords(this.file.size)}${left}`;
  }

  fail(error) {
    if (error.status === 403 && !this.isRenewed) { // a form token of a session before this one
      this.isRenewed = true;
      this.go();
      return;
    }
    if (PASSING.includes(error.status) && this.failures < ATTEMPTS) {
      const delay = RETRY_MS[Math.min(this.failures++, RETRY_MS.length - 1)];
      this.figures.textContent = `${error.message}; trying again…`;
      this.timer = setTimeout(() => this.go(), delay);
      return;
    }
    this.stop();
    this.figures.textContent = `Stopped at ${inWords(this.offset)} of ${inWords(this.file.size)}.`;
    this.tell("The upload stopped", error);
  }

  tell(what, error) {
    tell(this.problem, what, error);
    this.isHeld = error.status === 401;
    this.pauseButton.textContent = "Try again";
    this.failures = 0;
    this.isRenewed = false;
  }

  finish() {
    this.running = this.isHeld = false;
    forget(this.name);
    this.figures.textContent = "All bytes are there. They are being checked.";
    this.controls.hidden = this.question.hidden = true;
    location.assign(`/images/${this.name}`); // also there: the session may be another one by now
  }

  // Once the image is made its fields stay; on its page another file can be chosen between two runs.
  enableFields(isEnabled) {
    if (isEnabled && !this.place.hasAttribute("data-upload")) return;
    const fields = this.place.querySelectorAll("input:not([type=hidden]), select");
    for (const field of fields) field.disabled = !isEnabled;
  }
}

// Say what went wrong; who has no session any more gets one in another tab, since here is the file.
function tell(problem, what, error) {
  if (error.status === 401) {
    const link = document.createElement("a");
    link.href = "/login";
    link.target = "_blank";
    link.textContent = "Sign in in another tab";
    problem.replaceChildren("Your session has ended. ", link, ", then try again here.");
  } else if (error.name === "NotReadableError" || error.name === "NotFoundError") {
    problem.textContent = "The file cannot be read: it was changed or removed. Choose it again on the image's page.";
  } else {
    problem.textContent = what ? `${what}: ${error.message}.` : error.message;
  }
  problem.hidden = false;
}

const uploads = new WeakMap();
function uploadAt(place) {
  if (!uploads.has(place)) uploads.set(place, new Upload(place));
  return uploads.get(place);
}

// --- the form for a new image: make the object, then send the bytes
const form = document.querySelector("[data-upload-form]");
form?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const file = form.querySelector("#file").files[0];
  const begin = form.querySelector("[data-upload-begin]");
  const start = form.querySelector("[data-upload-start]");
  const problem = form.querySelector("[data-upload-problem]");
  problem.hidden = true;
  start.disabled = true;
  form.elements.upload_length.value = String(file.size);
  try {
    await findState(); // another form token, where somebody has signed in again meanwhile
    const fields = new URLSearchParams();
    for (const [key, value] of new FormData(form)) if (typeof value === "string") fields.set(key, value);
    const url = await makeImage(form.getAttribute("action"), fields);
    const name = form.elements.name.value.trim();
    remember(name, file);
    begin.hidden = true;
    uploadAt(form).start(file, name, url);
  } catch (error) {
    tell(problem, "", error);
    start.disabled = false;
  }
});

// --- an image that waits for its bytes: the same file, chosen again
function showKnown() {
  const place = document.querySelector("[data-upload]");
  const known = place && knownFile(place.dataset.name);
  if (known) {
    const hint = place.querySelector("[data-upload-hint]");
    hint.textContent = `Choose the same file to go on: ${known.name}, ${inWords(known.size)}.`;
  }
}
document.addEventListener("change", async (event) => {
  const file = event.target.type === "file" && event.target.files[0];
  if (!file) return;
  const note = document.querySelector("[data-upload-note]");
  if (note) note.textContent = await noteOf(file);
  const place = event.target.closest("[data-upload]");
  if (!place) return;
  const upload = uploadAt(place);
  if (upload.running) return;
  const length = Number(place.dataset.length || file.size);
  if (file.size !== length) {
    const told = `This is another file: it has ${file.size} bytes, and ${length} are expected.`;
    tell(upload.problem, "", new Trouble(told));
    return;
  }
  upload.start(file, place.dataset.name, place.dataset.upload);
});
// The page may fetch itself anew, but not from under an upload; nor may an answer that is on its way
// by then replace it, or lead to the login page.
for (const name of ["htmx:beforeRequest", "htmx:beforeOnLoad"]) {
  document.addEventListener(name, (event) => {
    const place = document.querySelector("[data-upload]");
    const isHeld = place && uploads.get(place)?.isHeld;
    if (isHeld && event.detail.target?.id === "main") event.preventDefault();
  });
}
document.addEventListener("htmx:afterSwap", showKnown);
showKnown();
