"use strict";
// The gallery draws only the rows of cards that are on the screen. `decisions` maps a finding's id
// to "accept" or "reject"; `past` holds what each step changed, for undo.
const { findings, names, fingerprint, folder } = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const view = at("view"), store = "audit-" + fingerprint;
const GAP = 14, LEAST = 196, TEXT = 66;
let decisions = remembered(), past = [], shown = [], chosen = 0, columns = 1, side = LEAST, kept = true;

function remembered() {
  try { return JSON.parse(localStorage.getItem(store)) || {}; } catch { return {}; }
}

function remember() {
  try { localStorage.setItem(store, JSON.stringify(decisions)); kept = true; } catch { kept = false; }
}

function passes(f) {
  const kind = [...at("kinds").querySelectorAll("input")].some((box) => box.checked && box.value === f.kind);
  const label = at("class").value, state = at("state").value, word = at("image").value.toLowerCase();
  return kind && f.score >= Number(at("score").value) &&
    (!label || f.classes.some((id) => String(id) === label)) &&
    (!word || f.file.toLowerCase().includes(word)) &&
    (!state || (decisions[f.id] || "open") === state);
}

function filter() {
  const before = shown[chosen];
  at("least").value = Number(at("score").value).toFixed(2);
  shown = findings.filter(passes);
  chosen = Math.max(0, shown.indexOf(before));
  layout();
}

function layout() {
  const width = view.clientWidth;
  columns = Math.max(1, Math.floor((width + GAP) / (LEAST + GAP)));
  side = Math.floor((width - GAP * (columns - 1)) / columns);
  view.style.height = Math.ceil(shown.length / columns) * (side + TEXT + GAP) + "px";
  draw();
}

function draw(everything) {
  const high = side + TEXT + GAP, start = view.getBoundingClientRect().top;
  const first = everything ? 0 : Math.max(0, Math.floor(-start / high) - 1) * columns;
  const last = everything ? Math.min(shown.length, 400) : (Math.ceil((innerHeight - start) / high) + 1) * columns;
  view.replaceChildren(...shown.slice(first, Math.max(first, last)).map((f, n) => card(f, first + n, high)));
  const done = shown.filter((f) => decisions[f.id]).length;
  at("progress").max = shown.length || 1;
  at("progress").value = done;
  at("count").textContent = `${done} of ${shown.length} decided`;
  at("undo").disabled = !past.length;
  at("all").disabled = done === shown.length;
  at("accept").disabled = at("reject").disabled = !shown.length;
}

function card(f, place, high) {
  const box = document.createElement("article");
  box.className = `card ${decisions[f.id] || ""} ${place === chosen ? "chosen" : ""}`;
  box.dataset.id = f.id;
  box.style.cssText = `width:${side}px;height:${side + TEXT}px;left:${(place % columns) * (side + GAP)}px;` +
    `top:${Math.floor(place / columns) * high}px`;
  const rect = (b, name) => b ? `<rect class="${name}" x="${b[0]}" y="${b[1]}" width="${b[2]}" height="${b[3]}"/>` : "";
  box.innerHTML = `<div class="crop"><img loading="lazy" decoding="async" alt="">` +
    `<svg viewBox="0 0 1000 1000" preserveAspectRatio="none">${rect(f.human, "under")}${rect(f.human, "human")}` +
    `${rect(f.proposed, "under")}${rect(f.proposed, "proposed")}</svg></div>` +
    `<span class="mark"></span><p><b></b><em></em></p><p></p><p class="quiet"></p>`;
  box.querySelector("img").src = `${folder}/${f.id}.jpg`;
  box.querySelector(".mark").textContent = decisions[f.id] === "accept" ? "accepted" : "rejected";
  box.querySelector("b").textContent = f.kind;
  box.querySelector("em").textContent = f.score.toFixed(2);
  const lines = box.querySelectorAll("p");
  lines[1].textContent = f.classes.map((id) => names[id]).join(" → ");
  lines[2].textContent = f.file;
  box.addEventListener("click", () => { chosen = place; draw(); });
  return box;
}

function decide(changes) {
  past.push(changes.map(([id]) => [id, decisions[id]]));
  for (const [id, word] of changes) put(id, word);
  remember();
}

function put(id, word) {
  if (word) decisions[id] = word; else delete decisions[id];
}

function undo() {
  const changes = past.pop();
  if (!changes) return;
  for (const [id, word] of changes) put(id, word);
  remember();
  const found = shown.findIndex((f) => f.id === changes[0][0]);
  if (found >= 0) { chosen = found; reveal(); }
  draw();
}

function move(step) {
  chosen = Math.min(Math.max(chosen + step, 0), Math.max(shown.length - 1, 0));
  reveal();
  draw();
}

// The chosen card's upper edge, the height of a row, and where the page below its bar begins.
function place() {
  const high = side + TEXT + GAP, start = view.getBoundingClientRect().top + Math.floor(chosen / columns) * high;
  return [start, high, document.querySelector(".bar-top").offsetHeight + GAP];
}

function reveal() {
  const [start, high, head] = place();
  if (start < head) scrollBy(0, start - head);
  else if (start + high > innerHeight) scrollBy(0, start + high - innerHeight);
}

function exported() {
  return JSON.stringify({ version: 1, fingerprint, decisions }, null, 1) + "\n";
}

function download() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([exported()], { type: "application/json" }));
  link.download = "decisions.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

async function load(event) {
  const file = event.target.files[0];
  event.target.value = "";
  if (!file) return;
  let made;
  try { made = JSON.parse(await file.text()); } catch { made = {}; }
  if (made?.fingerprint !== fingerprint || !made.decisions || typeof made.decisions !== "object") {
    alert(`${file.name} was not made on this audit (${fingerprint}).`);
    return;
  }
  const words = Object.entries(made.decisions).filter(([id, word]) => findings[id] && /^(accept|reject)$/.test(word));
  if (words.length) decide(words.map(([id, word]) => [Number(id), word]));
  filter();
}

const KEYS = {
  a: () => choose("accept"), r: () => choose("reject"), s: () => move(1), u: undo,
  ArrowRight: () => move(1), ArrowLeft: () => move(-1),
  ArrowDown: () => move(columns), ArrowUp: () => move(-columns),
};

function choose(word) {
  if (!shown.length) return;
  const [start, high, head] = place();
  if (start + high < head || start > innerHeight) { reveal(); return; } // nobody has seen what it decides
  decide([[shown[chosen].id, word]]);
  move(1);
}

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=search], select, input[type=range]")) return;
  const action = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (action) { event.preventDefault(); action(); }
});
const FILTERS = ["kinds", "class", "score", "image", "state"];
for (const name of FILTERS) at(name).addEventListener("input", filter);
// A filter set with the mouse gives the keys back to the gallery at once, one set by keys at Enter or Escape.
let pointed = false;
addEventListener("pointerdown", () => { pointed = true; }, true);
addEventListener("keydown", () => { pointed = false; }, true);
for (const name of FILTERS) {
  if (name !== "image") at(name).addEventListener("change", (event) => { if (pointed) event.target.blur(); });
  at(name).addEventListener("keydown", (event) => { if (/^(Enter|Escape)$/.test(event.key)) event.target.blur(); });
}
at("accept").addEventListener("click", () => choose("accept"));
at("reject").addEventListener("click", () => choose("reject"));
at("all").addEventListener("click", () => {
  const open = shown.filter((f) => !decisions[f.id]);
  if (open.length) decide(open.map((f) => [f.id, "accept"]));
  draw();
});
at("undo").addEventListener("click", undo);
at("load").addEventListener("click", () => at("file").click());
at("file").addEventListener("change", load);
at("export").addEventListener("click", download);
let waiting = false;
addEventListener("scroll", () => {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; draw(); });
}, { passive: true });
// Another tab with this page has decided something; a browser that keeps nothing asks before it leaves.
addEventListener("storage", (event) => { if (event.key === store) { decisions = remembered(); draw(); } });
addEventListener("beforeunload", (event) => { if (!kept) event.preventDefault(); });
addEventListener("resize", layout);
addEventListener("beforeprint", () => draw(true));
addEventListener("afterprint", () => draw());
filter();
