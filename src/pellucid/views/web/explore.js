import { announce, button, choice, gallery, h, notes } from "./core.js";
import { MOUNTS } from "./mounts.js";

// The explorer: #/<run>/<view>, #/<run>/picture or #/compare/<run one came from> says what is shown, so that back and reload work.

// An error that a reader is told in its own words; all others are faults of this page.
const saying = (words) => Object.assign(new Error(words), { words });

async function ask(path, options) {
  const read = async (answer) => [answer.ok, await answer.text()];
  const [ok, text] = await fetch(path, options)
    .then(read)
    .catch(() => [false, "The explorer does not answer. Start `pellucid explore` again and open the address that it prints."]);
  if (ok) return JSON.parse(text);
  throw saying(text.startsWith("{") ? JSON.parse(text).error : text);
}

const named = (name) => (name === "picture" ? "Your picture" : name[0].toUpperCase() + name.slice(1));

const main = document.getElementById("content");
const title = h("h1");
const state = h("p.state.muted");
const list = choice("Run", [], 0, (i) => {
  const { view } = route();
  location.hash = `#/${i}/${view === "compare" ? "overview" : view}`;
});
const entries = []; // of the list, one a run
const every = h("option", { disabled: true, hidden: true }, "all of them"); // what the list says while runs are compared
list.input.append(every);
const trouble = h("p.fault", { role: "alert" });
const wait = h("p.waiting", { role: "status" });
const tabs = h("nav", { id: "tabs", "aria-label": "Views" });
const file = h("input", { type: "file", accept: "image/*", hidden: true, onchange: () => look(file.files[0]) });
const adder = button("Add a picture…", () => file.click(), { title: "or drag one onto the page" });
const answers = {}; // about pictures, by run
let runs = [];
let seen = {}; // what is shown: {run, view, version and kept of its subject, mounted}
let turn = 0; // of show; an answer to an earlier one comes too late
let lost = false; // whether the last question about the runs failed
let address = ""; // the last one that names a view

const namesView = () => !location.hash || location.hash.startsWith("#/");

function route() {
  if (namesView()) address = location.hash;
  const [, first, second] = address.match(/^#\/(\w+)\/?(\w*)/) ?? [];
  const all = first === "compare";
  const run = runs[all ? second : first] ?? runs[0];
  if (all && runs[1]) return { run, view: first };
  return { run, view: run.views.includes(second) || (second === "picture" && answers[run.id]) ? second : "overview" };
}

// What a view is made of: its version changes with what is seen of it, `kept` with what a person is asked about before it is loaded.
function subject(view, run) {
  if (view !== "compare") return run;
  const version = runs.map((one) => one.version).join(" ");
  return { version, kept: version };
}

function status({ task, status: at, epoch, epochs, headline: number, error }) {
  if (error) return at;
  const measured = number ? [`${number.title}: ${number.text}`] : [];
  return [task, `${at}, epoch ${epoch} of ${epochs}`, ...measured].join(" · ");
}

// Text and content are new only where they are other than before: what has the focus keeps it, and nothing is read aloud again.
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
function renew(element, key, make) {
  if (element.dataset.key !== (element.dataset.key = JSON.stringify(key))) element.replaceChildren(...make());
}

// at: the run that the list says, none where it says all.
function listRuns(at) {
  runs.forEach(({ name, status }, i) => {
    if (!entries[i]) every.before((entries[i] = h("option")));
    setText(entries[i], `${name} (${status})`);
  });
  const said = entries[at] ?? every;
  if (!said.selected) said.selected = true;
  list.hidden = runs.length < 2;
}

function counted() {
  const damaged = runs.filter((run) => run.error).length;
  return `${runs.length} runs` + (damaged ? `, of which ${damaged} cannot be read` : "");
}

function header() {
  const { run, view } = route();
  const all = view === "compare";
  const at = `#/${run.id}/`;
  setText(title, all ? "Runs side by side" : run.name);
  setText(state, all ? counted() : status(run));
  adder.hidden = all || !!run.error;
  listRuns(all ? -1 : run.id);
  const links = [...(all ? ["overview"] : run.views), ...(answers[run.id] ? ["picture"] : [])].map((name) => [at + name, name]);
  if (runs[1]) links.push([`#/compare/${run.id}`, "compare"]);
  renew(tabs, [links, view], () => links.map(([href, name]) => h("a", { href, "aria-current": name === view && "page" }, named(name))));
  document.title = `${named(view)} · ${title.textContent} · Pellucid`;
}

function inWords(error) {
  if (error.words) return error.words;
  console.error(error);
  return "This page failed here, which is a fault of Pellucid; the browser’s console says where. The other views and runs can be used.";
}
const fail = (error) => setText(trouble, inWords(error));

const secondary = (text, level = "h2") => h(level, { tabindex: -1 }, text);

async function section(root, name, of, view, level) {
  const moving = h("div.moving");
  const keep = button("Save this view", () => save(name, of, view, moving, mounted).catch(fail));
  root.append(h("section", h("div.above", secondary(view.title, level), keep), moving));
  const mounted = await MOUNTS[name](moving, view, { live: true }, {});
  mounted.rest?.catch(fail);
  return mounted;
}

const nothing = (view) =>
  view === "mistakes"
    ? "This run kept no predictions that can be shown here."
    : "This run kept nothing for this view; its recipe says under inside: what is kept.";

async function show(moved) {
  const mine = ++turn;
  const { run, view } = route();
  const all = view === "compare";
  const root = h("div");
  const { version, kept } = subject(view, run);
  seen = { run: run.id, view, version, kept };
  header();
  setText(trouble, "");
  main.setAttribute("aria-busy", true);
  try {
    if (run.error && !all) throw saying(run.error);
    const found = view === "picture" ? answers[run.id] : (await ask(all ? "/api/compare" : `/api/runs/${run.id}/views/${view}`)).view;
    if (mine !== turn) return;
    main.replaceChildren(root);
    if (view === "picture") await answered(root, run, found);
    else if (found) seen.mounted = await section(root, view, all ? "runs" : run.name, found, "h2");
    else root.append(secondary(named(view)), h("p", nothing(view)));
  } catch (error) {
    if (mine === turn) main.replaceChildren(secondary("This cannot be shown"), h("p.fault", { role: "alert" }, inWords(error)));
  }
  if (mine !== turn) return;
  main.removeAttribute("aria-busy");
  if (moved) main.querySelector("h2").focus();
}

// Whether what is seen has to be made anew: nothing was shown yet, or its subject became readable, or unreadable, since.
const outdated = ({ view, mounted, version }, now) => !view || (view !== "picture" && version !== now.version && !!now.error === !!mounted);

// Numbers and curves of a run that trains move on in place; what it kept anew, and the runs side by side, are loaded when a person asks for it.
async function moveOn(run, { version, kept }) {
  const { view, mounted } = seen;
  const mine = turn;
  if (!mounted || version === seen.version) return;
  if (mounted.update) {
    const found = await ask(`/api/runs/${run.id}/views/${view}`);
    if (mine === turn) await mounted.update(found.view);
    if (mine !== turn) return;
  } else if (kept !== seen.kept) {
    offer(view === "compare" ? "The runs moved on since this was made. " : `The run kept something new (epoch ${run.epoch}). `);
  }
  Object.assign(seen, { version, kept }); // only now: what failed is tried again
}

// A line that stands until the view is loaded again; only its words change.
function offer(words) {
  if (!main.querySelector(".offer")) {
    const load = button("Load this view again", () => show(true));
    main.prepend(h("p.offer", { role: "status" }, h("span"), load));
  }
  setText(main.querySelector(".offer span"), words);
}

async function follow() {
  try {
    ({ runs } = await ask("/api/runs"));
    header();
    const run = runs[seen.run];
    const now = subject(seen.view, run);
    if (outdated(seen, now)) await show(false);
    else await moveOn(run, now);
    if (lost) setText(trouble, "");
    lost = false;
  } catch (error) {
    fail(error);
    lost = true;
  }
  setTimeout(follow, runs.some((run) => run.error || run.status === "running") ? 1500 : 10000);
}

async function look(body) {
  if (!body || !runs[0]) return;
  const { run, view } = route();
  const from = location.hash;
  const there = `#/${run.id}/picture`;
  file.value = "";
  if (view === "compare") return fail(saying("A picture is shown to one run: choose one in the list, then add the picture."));
  if (run.error) return fail(saying("This run cannot be read, so that no picture can be shown to it."));
  if (wait.textContent) return fail(saying("One picture at a time: busy with the last one."));
  setText(trouble, "");
  wait.textContent =
    "Looking at your picture. Torch and the model are loaded first, which takes some seconds; the page can be used meanwhile.";
  try {
    answers[run.id] = await ask(`/api/runs/${run.id}/look`, { method: "POST", body });
    announce("The answer about your picture is there.");
    if (location.hash !== from) header();
    else if (from === there) show(true);
    else location.hash = there;
  } catch (error) {
    fail(error);
  }
  wait.textContent = "";
}

async function answered(root, run, { lines, views, near }) {
  const said = h(
    "ul.answer",
    lines.map((line) => h("li", line)),
  );
  root.append(secondary("Your picture"), said);
  for (const name in views) await section(root, name, run.name, views[name], "h3");
  if (near) root.append(h("section", h("h3", "Training pictures like it"), gallery(near.items), notes([near.how])));
}

// ── a view as one file ──

// What a control says: its label and where it stands.
function controlText(control) {
  const input = control.querySelector("input, select");
  if (!input) return control.textContent; // the progress of a training
  const label = (control.querySelector("label") ?? control).textContent;
  if (input.type === "checkbox") return `${label}: ${input.checked ? "on" : "off"}`;
  return `${label}: ${input.selectedOptions?.[0]?.text ?? control.querySelector("output").textContent}`;
}

// What a button says where that is content: an entry of a legend, a list or a table; null for one that only does something.
function buttonText(one) {
  if (!one.closest("li, td, th, [role=group]")) return null;
  const ofChart = one.closest("figcaption .legend"); // there all are pressed but those of hidden lines
  const state = one.getAttribute("aria-pressed");
  const tag = ofChart && state === "false" ? "s" : !ofChart && state === "true" ? "strong" : "span";
  return h(tag, { class: one.className }, ...one.childNodes);
}

const MOVING = /\b(arrow keys|arrows and|dragging|the wheel|point at|press a)\b/i;
// A text without its sentences about keys and pointer.
const unmoving = (text) =>
  text
    .split(/(?<=[.;]) /)
    .filter((sentence) => !MOVING.test(sentence))
    .join(" ")
    .replace(/;$/, "");

// A view as it is seen now, of pictures and texts alone.
function stillOf(moving) {
  const still = moving.cloneNode(true);
  const both = (selector) => [...still.querySelectorAll(selector)].map((copy, i) => [copy, moving.querySelectorAll(selector)[i]]);
  for (const [copy, control] of both(".control")) copy.replaceWith(control.hidden ? "" : h("p.control", controlText(control)));
  for (const [copy, canvas] of both("canvas")) {
    const drawing = canvas.getAttribute("role") === "presentation";
    const width = canvas.clientWidth ? `${canvas.clientWidth}px` : "";
    const alt = drawing ? "" : unmoving(canvas.getAttribute("aria-label") ?? "");
    copy.replaceWith(h("img", { src: canvas.toDataURL(), alt, style: { width, "max-width": "100%" } }));
  }
  for (const strip of still.querySelectorAll(".thumbs, [hidden]")) strip.remove();
  for (const one of still.querySelectorAll("button")) {
    one.closest("td")?.style.setProperty("--p", one.style.getPropertyValue("--p")); // the ground of a cell of a confusion
    one.replaceWith(buttonText(one) ?? "");
  }
  for (const line of still.querySelectorAll("p, caption")) if (!line.children[0]) line.textContent = unmoving(line.textContent);
  for (const part of still.querySelectorAll("[tabindex]")) part.removeAttribute("tabindex");
  for (const part of [still, ...still.querySelectorAll(".moving")]) part.className = "still";
  return still;
}

// One HTML file without the server: the view with its state, and as it is seen now as a still picture.
async function save(name, of, view, moving, mounted) {
  const { parts } = await ask("/api/offline");
  const text = (element) => new XMLSerializer().serializeToString(element);
  const body = [
    h("header", h("p.eyebrow", of), h("h1", view.title)),
    h("main", { id: "content" }, h("div", { "data-view": name }, stillOf(moving))),
  ];
  const data = JSON.stringify({ view, state: mounted.state() }).replaceAll("<", "\\u003c");
  const held = `<script type="application/json" id="data-${name}">${data}</${"script"}>`;
  const heading = text(new Text(`${named(name)} of ${of}`));
  const page = new Blob([parts[0], heading, parts[1], ...body.map(text), parts[2], held, parts[3]], { type: "text/html" });
  const link = h("a", { href: URL.createObjectURL(page), download: `${of}-${name}.html`.replace(/[^\p{L}\p{N}.-]+/gu, "_") });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  announce("The view is saved as one file.");
}

for (const name of ["dragover", "dragleave", "drop"]) {
  addEventListener(name, (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    document.documentElement.classList.toggle("dropping", name === "dragover");
    if (name === "drop") look(event.dataTransfer.files[0]);
  });
}
// A run that was chosen in the list leaves the focus there: arrow keys go on to the next.
addEventListener("hashchange", () => runs[0] && namesView() && show(document.activeElement !== list.input));
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // its address would name no view
  main.focus();
});
history.replaceState(null, "", location.pathname + location.hash);
const desk = h("div.desk", list, adder, file, wait);
document.getElementById("head").append(h("p.eyebrow", "Pellucid explorer"), title, state, desk, trouble, tabs);
follow();
