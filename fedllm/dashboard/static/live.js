// Keeps the sections of the page as the server has them; without it the page is read again.
const link = document.getElementById("link");
const source = new EventSource(document.body.dataset.events);

function replace(section, html) {
  const open = [...section.querySelectorAll("details[open]")].map((one) => one.id);
  const chosen = [...section.querySelectorAll("input:checked")].map((one) => one.value);
  const active = document.activeElement;
  const focused = section.contains(active) ? selector(active) : "";
  section.innerHTML = html;
  for (const id of open) document.getElementById(id)?.setAttribute("open", "");
  for (const box of section.querySelectorAll("input")) box.checked = chosen.includes(box.value);
  if (focused) section.querySelector(focused)?.focus({ preventScroll: true });
}

// Where the keyboard was, in words that hold in the new section too.
function selector(element) {
  if (element.id) return `#${CSS.escape(element.id)}`;
  const inside = element.closest("details[id]");
  if (inside && element.matches("summary")) return `#${CSS.escape(inside.id)} > summary`;
  const href = element.getAttribute("href");
  if (href) return `a[href="${CSS.escape(href)}"]`;
  const label = element.getAttribute("aria-label");
  return label ? `[aria-label="${CSS.escape(label)}"]` : "";
}

source.addEventListener("sections", (event) => {
  const told = JSON.parse(event.data);
  document.title = told.title;
  for (const [id, html] of Object.entries(told.sections)) {
    const section = document.getElementById(id);
    if (section) replace(section, html);
  }
  say(told.said || "Live.");
});
source.addEventListener("over", (event) => {
  source.close();
  say(`${JSON.parse(event.data)} This page does not change any more.`);
});
source.addEventListener("open", () => say("Live."));
source.addEventListener("error", () => say("The connection is lost; trying again."));

function say(words) {
  if (link.textContent !== words) link.textContent = words;
}
