// Sends a file in pieces (the core of tus 1.0.0): with progress, pause, and going on where it
// stopped, after a lost connection as after a reload. Only one piece is in memory at a time, and
// that one belongs to the browser: a Blob's slice is read while it is sent.

const PIECE_BYTES = 32 * 1024 * 1024;
const RETRY_MS = [500, 1000, 2000, 4000, 8000, 15000];
const remembered = (name) => `shorthorn-upload:${name}`;

class Upload {
  constructor(place, file, url, name) {
    this.place = place;
    this.file = file;
    this.url = url;
    this.name = name;
    this.offset = 0;
    this.failures = 0;
    this.samples = [];
    this.paused = false;
    this.running = false;
    const piece = (selector) => place.querySelector(selector);
    this.panel = piece("[data-upload-running]");
    this.bar = this.panel.querySelector("progress");
    this.figures = piece("[data-upload-figures]");
    this.problem = piece("[data-upload-problem]");
    this.pauseButton = piece("[data-upload-pause]");
    this.pauseButton.addEventListener("click", () => (this.paused ? this.go() : this.pause()));
    window.addEventListener("online", () => { if (this.waiting) { clearTimeout(this.waiting); this.go(); } });
    window.addEventListener("beforeunload", (event) => { if (this.running) event.preventDefault(); });
  }

  async go() {
    this.paused = false;
    this.waiting = 0;
    this.running = true;
    this.panel.hidden = false;
    this.problem.hidden = true;
    this.pauseButton.hidden = false;
    this.pauseButton.textContent = "Pause";
    this.samples = [];
    try {
      this.offset = await this.ask();
      while (this.offset < this.file.size && !this.paused) {
        this.offset = await this.send(this.file.slice(this.offset, this.offset + PIECE_BYTES));
        this.failures = 0;
      }
      if (!this.paused) this.finish();
    } catch (error) {
      this.fail(error);
    }
  }

  pause() {
    this.paused = true;
    this.running = false;
    this.request?.abort();
    clearTimeout(this.waiting);
    this.pauseButton.textContent = "Go on";
    this.figures.textContent = `Paused at ${inWords(this.offset)} of ${inWords(this.file.size)}.`;
  }

  async ask() {
    const answer = await fetch(this.url, { method: "HEAD", headers: { "Tus-Resumable": "1.0.0" } });
    if (answer.status === 404 && this.offset === 0) throw new Error("not ready yet", { cause: 503 });
    if (!answer.ok) throw new Error(`the server answered ${answer.status}`, { cause: answer.status });
    return Number(answer.headers.get("Upload-Offset"));
  }

  send(piece) {
    const start = this.offset;
    return new Promise((resolve, reject) => {
      const request = (this.request = new XMLHttpRequest());
      request.open("PATCH", this.url);
      request.setRequestHeader("Tus-Resumable", "1.0.0");
      request.setRequestHeader("Content-Type", "application/offset+octet-stream");
      request.setRequestHeader("Upload-Offset", String(start));
      request.setRequestHeader("X-CSRF-Token", formToken());
      request.upload.onprogress = (event) => this.show(start + event.loaded);
      request.onload = () => {
        if (request.status === 204) return resolve(Number(request.getResponseHeader("Upload-Offset")));
        const told = request.getResponseHeader("Upload-Offset");
        if (request.status === 409 && told !== null) return resolve(Number(told));
        reject(new Error(message(request), { cause: request.status }));
      };
      request.onerror = () => reject(new Error("the connection was lost", { cause: 0 }));
      request.onabort = () => resolve(start);
      request.send(piece);
    });
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
    if (this.paused) return;
    const isTemporary = [0, undefined, 409, 423, 429, 502, 503, 504].includes(error.cause);
    if (isTemporary && this.failures < 40) {
      const delay = RETRY_MS[Math.min(this.failures++, RETRY_MS.length - 1)];
      if (error.cause !== 503) this.figures.textContent = `${error.message}; trying again…`;
      this.waiting = setTimeout(() => this.go(), delay);
      return;
    }
    this.running = false;
    this.problem.textContent = `The upload stopped: ${error.message}.`;
    this.problem.hidden = false;
    this.pauseButton.textContent = "Try again";
    this.paused = true;
    this.failures = 0;
  }

  finish() {
    this.running = false;
    localStorage.removeItem(remembered(this.name));
    this.figures.textContent = "All bytes are there. They are being checked.";
    this.pauseButton.hidden = true;
    const detail = `/images/${this.name}`;
    if (location.pathname !== detail) location.assign(detail);
  }
}

function message(request) {
  try {
    return JSON.parse(request.responseText).message;
  } catch {
    return `the server answered ${request.status}`;
  }
}
function formToken() {
  return JSON.parse(document.body.getAttribute("hx-headers"))["X-CSRF-Token"];
}
function inWords(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) { bytes /= 1024; unit += 1; }
  return `${bytes.toFixed(unit && bytes < 100 ? 1 : 0)} ${units[unit]}`;
}
function duration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}
function remember(name, file) {
  const known = { name: file.name, size: file.size, modified: file.lastModified };
  localStorage.setItem(remembered(name), JSON.stringify(known));
}

// --- the form for a new image: make the object, then send the bytes
const form = document.querySelector("[data-upload-form]");
form?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const file = form.querySelector("#file").files[0];
  const start = form.querySelector("[data-upload-start]");
  const problem = form.querySelector("[data-upload-problem]");
  problem.hidden = true;
  start.disabled = true;
  form.elements.upload_length.value = String(file.size);
  const fields = new URLSearchParams();
  for (const [key, value] of new FormData(form)) if (typeof value === "string") fields.set(key, value);
  const answer = await fetch(form.action, {
    method: "POST", body: fields, headers: { Accept: "application/json" },
  }).catch(() => null);
  const told = answer && await answer.json().catch(() => ({}));
  if (!answer?.ok) {
    problem.textContent = told?.message ?? "The server does not answer.";
    problem.hidden = false;
    start.disabled = false;
    return;
  }
  const name = form.elements.name.value;
  remember(name, file);
  start.hidden = true;
  new Upload(form, file, told.upload, name).go();
});

// --- an image that waits for its bytes: the same file, chosen again
const place = document.querySelector("[data-upload]");
if (place) {
  const name = place.dataset.name;
  const known = JSON.parse(localStorage.getItem(remembered(name)) ?? "null");
  const hint = place.querySelector("[data-upload-hint]");
  if (known) hint.textContent = `Choose the same file to go on: ${known.name}, ${inWords(known.size)}.`;
  place.querySelector("#file").addEventListener("change", (event) => {
    const file = event.target.files[0];
    const problem = place.querySelector("[data-upload-problem]");
    const length = Number(place.dataset.length || file.size);
    if (file.size !== length) {
      problem.textContent = `This is another file: it has ${file.size} bytes, and ${length} are expected.`;
      problem.hidden = false;
      return;
    }
    if (known && known.modified !== file.lastModified) {
      hint.textContent = "This file was changed since the upload began. Its bytes are compared at the end, if a checksum was given.";
    }
    remember(name, file);
    new Upload(place, file, place.dataset.upload, name).go();
  });
}
