// The file that is uploaded: which one it is, and how its size is said.

const PIECES = 64;
const PIECE_BYTES = 64 * 1024;
const LAST_BYTES = 1024 * 1024;
const SECTOR_BYTES = 512;
const remembered = (name) => `shorthorn-upload:${name}`;

// The sample of the bytes before an offset, as domain/upload_sample.py makes it; empty where this
// browser cannot (outside of HTTPS and this machine it has no hashes). Throws where the file cannot be read.
export async function sampleOf(file, offset) {
  if (!offset || !globalThis.crypto?.subtle) return "";
  const step = Math.floor(offset / PIECES);
  const pieces = [];
  for (let i = 0; i < PIECES; i += 1) {
    pieces.push(file.slice(i * step, Math.min(i * step + PIECE_BYTES, offset)));
  }
  pieces.push(file.slice(Math.max(0, offset - LAST_BYTES), offset));
  const digest = await crypto.subtle.digest("SHA-256", await new Blob(pieces).arrayBuffer());
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// --- what this browser knows of the file of an image's upload
export function remember(name, file) {
  const known = { name: file.name, size: file.size, modified: file.lastModified };
  localStorage.setItem(remembered(name), JSON.stringify(known));
}
export function forget(name) {
  localStorage.removeItem(remembered(name));
}
export function knownFile(name) {
  return JSON.parse(localStorage.getItem(remembered(name)) ?? "null");
}
// How a file differs from the known one, in words; empty where it does not.
export function differenceOf(known, file) {
  if (known.name !== file.name) return `The upload began with ${known.name}, and this is ${file.name}.`;
  if (known.size !== file.size) return `It had ${known.size} bytes when the upload began, and has ${file.size}.`;
  if (known.modified !== file.lastModified) return `${file.name} was changed since the upload began.`;
  return "";
}

// What becomes of a file that is no whole disk, before a byte of it is sent.
export async function noteOf(file) {
  if (!file.size) return "This file is empty.";
  if (file.size % SECTOR_BYTES === 0) return "";
  const magic = new Uint8Array(await file.slice(0, 4).arrayBuffer().catch(() => new ArrayBuffer(0)));
  if (String.fromCharCode(...magic) === "QFI\xfb") return "";
  return `${file.size} bytes are no whole sectors of ${SECTOR_BYTES}: as a raw image it is padded with zeros.`;
}

export function inWords(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) { bytes /= 1024; unit += 1; }
  return `${bytes.toFixed(unit && bytes < 100 ? 1 : 0)} ${units[unit]}`;
}
export function duration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}
