// The form for a new image keeps what was typed when its bytes are to come from elsewhere: the links
// to the other forms carry the fields along.

const form = document.querySelector("form[data-create]");
const NOT_CARRIED = ["csrf_token", "from", "upload_length"];

for (const link of document.querySelectorAll("[data-source-tab]")) {
  link.addEventListener("click", () => {
    const url = new URL(link.href);
    for (const [key, value] of new FormData(form)) {
      if (NOT_CARRIED.includes(key) || typeof value !== "string") continue;
      if (value) url.searchParams.set(key, value);
      else url.searchParams.delete(key);
    }
    link.href = url;
  });
}
