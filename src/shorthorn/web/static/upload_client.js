// What an upload asks of the server, and what the answers mean. Every answer that is no success is
// a Trouble; its status is 0 where the connection was lost, and 401 where the session has ended.

export class Trouble extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

const ASK_AGAIN_MS = 300;
const ASK_AGAIN_TIMES = 100;
let formToken = JSON.parse(document.body.getAttribute("hx-headers") ?? "{}")["X-CSRF-Token"] ?? "";

// A page without a session is answered with a way to the login page, which is no answer to a script.
async function call(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Trouble("the connection was lost");
  }
  const isLogin = answer.redirected && new URL(answer.url).pathname === "/login";
  if (isLogin || answer.status === 401) throw new Trouble("your session has ended", 401);
  return answer;
}

async function refusal(answer) {
  const told = await answer.json().catch(() => ({}));
  return new Trouble(told.message ?? inGeneral(answer.status), answer.status);
}

function inGeneral(status) {
  if (status === 403) return "your rights do not allow it";
  return status === 404 ? "there is no such image any more" : `the server answered ${status}`;
}

// The state of an image, once its bytes are awaited or a moment has passed; and of the session: its
// form token may be another one than when the page was made. Without a name: of the session alone.
export async function findState(name = "") {
  const query = name ? `?name=${encodeURIComponent(name)}` : "";
  const answer = await call(`/new-image/state${query}`, { headers: { Accept: "application/json" } });
  if (!answer.ok) throw await refusal(answer);
  const told = await answer.json();
  formToken = told.formToken;
  document.body.setAttribute("hx-headers", JSON.stringify({ "X-CSRF-Token": formToken }));
  for (const input of document.querySelectorAll("input[name=csrf_token]")) input.value = formToken;
  return told;
}

// Makes the object; resolves to where its bytes go.
export async function makeImage(path, fields) {
  const headers = { Accept: "application/json" };
  const answer = await call(path, { method: "POST", body: fields, headers });
  if (answer.status !== 201) throw await refusal(answer);
  return (await answer.json()).upload;
}

// Where the upload goes on, and of which bytes.
export async function findPlace(url) {
  const answer = await call(url, { method: "HEAD", headers: { "Tus-Resumable": "1.0.0" } });
  const offset = answer.headers.get("Upload-Offset");
  // A copy that was there a moment ago is being made anew: ask again.
  if (answer.status === 404) throw new Trouble("no pool awaits the bytes", 503);
  if (!answer.ok || offset === null) throw new Trouble(inGeneral(answer.status), answer.status);
  return { offset: Number(offset), sample: answer.headers.get("Upload-Sample") ?? "" };
}

// Sends one piece; `request` is its XMLHttpRequest, since fetch tells of no progress.
export function sendPiece(request, url, start, piece, onProgress) {
  return new Promise((resolve, reject) => {
    request.open("PATCH", url);
    request.setRequestHeader("Tus-Resumable", "1.0.0");
    request.setRequestHeader("Content-Type", "application/offset+octet-stream");
    request.setRequestHeader("Upload-Offset", String(start));
    request.setRequestHeader("X-CSRF-Token", formToken);
    request.upload.onprogress = (event) => onProgress(start + event.loaded);
    request.onload = () => {
      const offset = request.getResponseHeader("Upload-Offset");
      if (request.status === 204 && offset !== null) resolve(Number(offset));
      else reject(new Trouble(said(request), request.status));
    };
    request.onerror = () => reject(new Trouble("the connection was lost"));
    request.onabort = () => resolve(start);
    request.send(piece);
  });
}

function said(request) {
  try {
    return JSON.parse(request.responseText).message ?? inGeneral(request.status);
  } catch {
    return inGeneral(request.status);
  }
}

// Removes the image, and what has arrived of it.
export async function discard(name) {
  await findState();
  await post(`/images/${name}/delete`);
}

// Removes what has arrived; resolves when the image is made anew, and awaits its bytes soon.
export async function startAnew(name, url) {
  await findState();
  const answer = await call(url, { method: "DELETE", headers: { "X-CSRF-Token": formToken } });
  if (!answer.ok && answer.status !== 404) throw await refusal(answer);
  await untilState(name, (state) => state === "failed");
  await post(`/images/${name}/retry`);
  await untilState(name, (state) => state !== "failed");
}

async function untilState(name, isWanted) {
  for (let i = 0; i < ASK_AGAIN_TIMES; i += 1) {
    if (isWanted((await findState(name)).state)) return;
    await new Promise((resolve) => setTimeout(resolve, ASK_AGAIN_MS));
  }
  throw new Trouble("what has arrived was not removed", 500);
}

async function post(path) {
  const body = new URLSearchParams({ csrf_token: formToken });
  const answer = await call(path, { method: "POST", body });
  if (!answer.ok) throw new Trouble(inGeneral(answer.status), answer.status);
}
