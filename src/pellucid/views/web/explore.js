import { announce, button, choice, gallery, h, notes } from "./core.js";
import { mountFeatures } from "./features.js";
import { mountAttention } from "./attention.js";
import { mountPositions } from "./positions.js";
import { mountMasks } from "./masks.js";
import { mountWords } from "./words.js";
import { mountMistakes } from "./mistakes.js";
import { mountOverview } from "./overview.js";
import { mountCompare } from "./compare.js";

// The explorer: #/<run>/<view>, #/<run>/picture or #/compare says what is shown, so that back and reload work.
const EXPLORED = {
  overview: mountOverview, features: mountFeatures, attention: mountAttention, positions: mountPositions, masks: mountMasks, words: mountWords,
  mistakes: mountMistakes, compare: mountCompare,
};
const ask = async (path, options) => {
  const answer = await fetch(path, options).catch(() => null);
  if (!answer) throw new Error("The explorer does not answer. Start `pellucid explore` again and open the address that it prints.");
  const text = await answer.text();
  if (answer.ok) return JSON.parse(text);
  throw new Error(text.startsWith("{") ? JSON.parse(text).error : text);
};
const named = (name) => (name === "picture" ? "Your picture" : name[0].toUpperCase() + name.slice(1));
const main = document.getElementById("content"), answers = {};
const title = h("h1"), state = h("p", { class: "state muted" }), chooser = h("div"), trouble = h("p", { class: "fault", role: "alert" });
const wait = h("p", { class: "waiting", role: "status" }), tabs = h("nav", { id: "tabs", "aria-label": "Views" });
const file = h("input", { type: "file", accept: "image/*", hidden: true, onchange: () => look(file.files[0]) });
const adder = button("Add a picture…", () => file.click(), { title: "or drag one onto the page" });
let runs = [], seen = {}, turn = 0;

function route() {
  const [, first, view] = location.hash.match(/^#\/(\w+)\/?(\w*)/) ?? [], run = runs[first] ?? runs[0];
  if (first === "compare" && runs[1]) return { run, view: first };
  return { run, view: run.views.includes(view) || (view === "picture" && answers[run.id]) ? view : "overview" };
}

function status({ task, status: at, epoch, epochs, headline: number, error }) {
  if (error) return at;
  return [task, `${at}, epoch ${epoch} of ${epochs}`, ...(number ? [`${number.name.replaceAll("_", " ")} ${number.text} on ${number.split}`] : [])].join(" · ");
}

// New content only where it is other than before: what has the focus keeps it.
function renew(element, key, make) {
  if (element.dataset.key !== (element.dataset.key = JSON.stringify(key))) element.replaceChildren(...[make()].flat());
}

function header() {
  const { run, view } = route(), all = view === "compare", at = `#/${run.id}/`;
  title.textContent = all ? "Runs side by side" : run.name;
  state.textContent = all ? `${runs.length} runs` : status(run);
  adder.hidden = all || !!run.error;
  const texts = runs.map((one) => `${one.name} (${one.status})`);
  renew(chooser, [texts, run.id], () => choice("Run", texts, run.id, (i) => (location.hash = `#/${i}/${route().view}`)));
  const links = [...(all ? ["overview"] : run.views), ...(answers[run.id] ? ["picture"] : [])].map((name) => [at + name, name]);
  if (runs[1]) links.push(["#/compare", "compare"]);
  renew(tabs, [links, view], () => links.map(([href, name]) => h("a", { href, "aria-current": name === view && "page" }, named(name))));
  document.title = `${named(view)} · ${title.textContent} · Pellucid`;
}

const fail = (error) => (trouble.textContent = error.message);

async function section(root, name, of, view, level) {
  const moving = h("div", { class: "moving" });
  const above = h("div", { class: "above" }, h(level, { tabindex: -1 }, view.title), button("Save this view", () => save(name, of, view, moving, mounted).catch(fail)));
  root.append(h("section", {}, above, moving));
  const mounted = await EXPLORED[name](moving, view, { live: true }, {});
  mounted.rest?.catch(fail);
  return mounted;
}

async function show(moved) {
  const mine = ++turn, { run, view } = route(), all = view === "compare", root = h("div");
  seen = { run: run.id, view, version: run.version, kept: run.kept };
  header();
  trouble.textContent = "";
  main.setAttribute("aria-busy", true);
  try {
    if (run.error && !all) throw new Error(run.error);
    const found = view === "picture" ? answers[run.id] : (await ask(all ? "/api/compare" : `/api/runs/${run.id}/views/${view}`)).view;
    if (mine !== turn) return;
    main.replaceChildren(root);
    if (view === "picture") await answered(root, run, found);
    else if (found) seen.mounted = await section(root, view, all ? "runs" : run.name, found, "h2");
    else root.append(h("h2", { tabindex: -1 }, named(view)), h("p", {}, "This run kept nothing for this view; its recipe says under inside: what is kept."));
  } catch (error) {
    if (mine === turn) main.replaceChildren(h("h2", { tabindex: -1 }, "This cannot be shown"), h("p", { class: "fault", role: "alert" }, error.message));
  }
  if (mine !== turn) return;
  main.removeAttribute("aria-busy");
  if (moved) main.querySelector("h2").focus();
}

// Numbers and curves of a run that trains move on in place; what it kept anew is loaded when a person asks for it.
async function follow() {
  try {
    ({ runs } = await ask("/api/runs"));
    if (trouble.lost) trouble.textContent = "";
    trouble.lost = false;
    const { run: id, view, mounted } = seen, run = runs[id], mine = turn;
    header();
    if (!view || (view !== "compare" && !!run.error === !!mounted && view !== "picture" && run.version !== seen.version)) await show(false);
    else if (mounted && run.version !== seen.version && view !== "compare") {
      seen.version = run.version;
      if (mounted.update) {
        const found = await ask(`/api/runs/${id}/views/${view}`);
        if (mine === turn) await mounted.update(found.view);
      } else if (run.kept !== seen.kept) {
        seen.kept = run.kept;
        main.querySelector(".offer")?.remove();
        main.prepend(h("p", { class: "offer", role: "status" }, `The run kept something new (epoch ${run.epoch}). `, button("Load this view again", () => show(true))));
      }
    }
  } catch (error) {
    fail(error);
    trouble.lost = true;
  }
  setTimeout(follow, runs.some((run) => run.error || run.status === "running") ? 1500 : 10000);
}

async function look(body) {
  const { run } = route(), from = location.hash, there = `#/${run.id}/picture`;
  file.value = "";
  if (!body || run.error) return;
  if (wait.textContent) return fail(new Error("One picture at a time: busy with the last one."));
  trouble.textContent = "";
  wait.textContent = "Looking at your picture. Torch and the model are loaded first, which takes some seconds; the page can be used meanwhile.";
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
  root.append(h("h2", { tabindex: -1 }, "Your picture"), h("ul", { class: "answer" }, lines.map((line) => h("li", {}, line))));
  for (const name in views) await section(root, name, run.name, views[name], "h3");
  if (near) root.append(h("section", {}, h("h3", {}, "Training pictures like it"), gallery(near.items), notes([near.how])));
}

// One HTML file without the server: the view with its state, and as it is seen now as a still picture.
async function save(name, of, view, moving, mounted) {
  const { parts } = await ask("/api/offline"), text = (element) => new XMLSerializer().serializeToString(element), still = moving.cloneNode(true);
  const seenNow = moving.querySelectorAll("canvas");
  still.querySelectorAll("canvas").forEach((canvas, i) =>
    canvas.replaceWith(h("img", { src: seenNow[i].toDataURL(), alt: seenNow[i].getAttribute("aria-label"), style: { "max-width": "100%" } })));
  for (const control of still.querySelectorAll("input, select, .control")) control.remove();
  for (const part of [still, ...still.querySelectorAll(".moving")]) part.className = "still";
  const body = [h("header", {}, h("p", { class: "eyebrow" }, of), h("h1", {}, view.title)), h("main", { id: "content" }, h("div", { "data-view": name }, still))];
  const data = JSON.stringify({ view, state: mounted.state() }).replaceAll("<", "\\u003c");
  const held = `<script type="application/json" id="data-${name}">${data}</${"script"}>`, heading = text(new Text(`${named(name)} of ${of}`));
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
addEventListener("hashchange", () => (/^(#\/|$)/.test(location.hash) ? show(true) : main.focus()));
history.replaceState(null, "", location.pathname + location.hash);
document.getElementById("head").append(h("p", { class: "eyebrow" }, "Pellucid explorer"), title, state, h("div", { class: "desk" }, chooser, adder, file, wait), trouble, tabs);
follow();
