// The form, the progress of a registration, its report and its files.

import { Viewer } from "./view.js";

const POLL = 400; // milliseconds between two questions of how far it has got
const STAGES = {
  starting: "Starting",
  registering: "Reading and aligning the scans",
  optimising: "Refining the deformation",
  drawing: "Preparing the pictures",
};
const FILES = {
  "moved.nii.gz": "the moved scan, on the fixed scan's grid",
  "field_itk.nii.gz": "the deformation for ITK, ANTs and 3D Slicer, affine part included",
  "field_learn2reg.nii.gz": "the same in the layout of the Learn2Reg challenge",
  "inverse_field_itk.nii.gz": "the inverse: it moves the fixed scan onto the moving one",
  "moved_label.nii.gz": "the moved label map",
};
const $ = (id) => document.getElementById(id);

let options;
let job; // the address of the registration that is shown, or nothing
let sending; // what stops an upload
let viewer;

function show(id, visible) {
  $(id).hidden = !visible;
}

function say(line) {
  $("error").textContent = line;
  show("error", Boolean(line));
}

async function ask(address, request) {
  let answer;
  try {
    answer = await fetch(address, request);
  } catch (fault) {
    if (fault.name === "AbortError") throw fault;
    throw new Error("The server does not answer: check that it is still running, then try again.");
  }
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({}));
  const line = told.error ?? `the server answered with status ${answer.status}`;
  throw new Error(line.charAt(0).toUpperCase() + line.slice(1));
}

function size(bytes) {
  return bytes < 1e6 ? `${Math.max(1, Math.round(bytes / 1e3))} kB` : `${Number((bytes / 1e6).toPrecision(3))} MB`;
}

function working(busy) {
  show("working", busy);
  $("register").disabled = busy;
}

// Spoken by screen readers when it changes, so not at every step.
function tell(line, share) {
  if ($("status").textContent !== line) $("status").textContent = line;
  if (share == null) $("progress").removeAttribute("value");
  else $("progress").value = share;
}

async function send(event) {
  event.preventDefault();
  say("");
  const form = new FormData($("form"));
  const files = ["fixed", "moving", "moving_label"].map((name) => form.get(name));
  const bytes = files.reduce((sum, file) => sum + file.size, 0);
  if (bytes > options.upload_bytes) {
    say(`These files have ${size(bytes)} together, and this server takes ${size(options.upload_bytes)}.`);
    return;
  }
  if (!files[2].size) form.delete("moving_label");
  show("result", false);
  working(true);
  tell("Sending the files");
  sending = new AbortController();
  try {
    const answer = await ask("api/jobs", { method: "POST", body: form, signal: sending.signal });
    sending = undefined;
    await follow((await answer.json()).id);
  } catch (fault) {
    finish(fault);
  }
}

function finish(fault) {
  sending = undefined;
  working(false);
  if (fault && fault.name !== "AbortError") say(fault.message);
}

// Until the registration has ended; the address of the page then leads to it, also after a reload.
async function follow(id) {
  job = `api/jobs/${encodeURIComponent(id)}`;
  history.replaceState(null, "", `#${id}`);
  working(true);
  const mine = job;
  for (;;) {
    const told = await (await ask(mine)).json();
    if (job !== mine) return;
    if (told.state === "failed") {
      forget();
      throw new Error(told.error.charAt(0).toUpperCase() + told.error.slice(1));
    }
    if (told.state === "done") {
      await present(told, mine);
      if (job === mine) working(false);
      return;
    }
    if (told.state === "waiting") tell(`Waiting: ${told.place} before this one`);
    else tell(STAGES[told.stage] ?? "Working", told.share);
    await new Promise((resume) => setTimeout(resume, POLL));
  }
}

function forget() {
  job = undefined;
  history.replaceState(null, "", location.pathname);
}

async function cancel() {
  sending?.abort();
  const mine = job;
  forget();
  working(false);
  show("result", false);
  if (mine) await ask(mine, { method: "DELETE" }).catch(() => {}); // it may have ended by itself
  $("register").focus();
}

function entry(term, value, words = false) {
  const name = document.createElement("dt"), description = document.createElement("dd"), pair = document.createElement("div");
  name.textContent = term;
  description.textContent = value;
  description.classList.toggle("words", words);
  pair.append(name, description);
  return pair;
}

async function present(told, mine) {
  const { report } = told;
  $("report").replaceChildren(
    entry("Similarity (NCC) before → after", `${report.ncc_before.toFixed(4)} → ${report.ncc_after.toFixed(4)}`),
    entry("Folding", `${report.folding_percent.toFixed(3)} %`),
    entry("Time", `${report.seconds.toFixed(1)} s`),
    ...(report.aligned ? [entry("Aligned first", report.aligned, true)] : []),
  );
  $("warnings").replaceChildren(...told.warnings.map((line) => Object.assign(document.createElement("li"), { textContent: line })));
  show("warnings", told.warnings.length > 0);
  $("files").replaceChildren(...told.files.map((file) => {
    const item = document.createElement("li"), link = document.createElement("a"), words = document.createElement("span");
    Object.assign(link, { href: `${mine}/${file.name}`, download: file.name, textContent: file.name });
    words.textContent = ` ${FILES[file.name] ?? ""}, ${size(file.bytes)}`;
    item.append(link, words);
    return item;
  }));
  tell("Fetching the pictures");
  const view = await (await ask(`${mine}/view.json`)).json();
  const buffer = await (await ask(`${mine}/view.bin`)).arrayBuffer();
  if (job !== mine) return; // cancelled meanwhile
  show("result", true);
  $("planes").replaceChildren();
  viewer = new Viewer(view, buffer, $("planes"));
  $("contours").disabled = !("moved_label" in view.arrays);
  draw();
  $("result-title").focus();
}

function draw() {
  const blend = $("blend").valueAsNumber;
  $("blend-value").textContent = blend === 100 ? "moved" : blend === 0 ? "fixed" : `${blend} % moved`;
  show("scale", $("jacobian").checked);
  viewer?.set({
    blend: blend / 100,
    contours: $("contours").checked,
    grid: $("grid").checked,
    jacobian: $("jacobian").checked,
  });
}

function minutes(seconds) {
  return seconds < 90 ? `${Math.round(seconds)} seconds` : `${Math.round(seconds / 60)} minutes`;
}

async function begin() {
  // The browser keeps the token; the address must not show it to who looks at the screen.
  if (location.search) history.replaceState(null, "", location.pathname + location.hash);
  options = await (await ask("api/options")).json();
  $("network").replaceChildren(...options.networks.map((one) => new Option(one.label, one.name)));
  $("steps").max = options.steps;
  $("limits").textContent =
    `At most ${size(options.upload_bytes)} together, ${options.voxels / 1e6} million voxels a scan and ` +
    `${minutes(options.seconds)}. Scans are deleted as soon as they are registered.`;
  $("kept").textContent = `The files are deleted ${minutes(options.keep_seconds)} after the registration.`;
  $("register").disabled = false;
  if (location.hash) {
    await follow(location.hash.slice(1)).catch((fault) => {
      forget();
      throw fault;
    });
  }
}

$("form").addEventListener("submit", send);
$("form").addEventListener("change", ({ target }) => target.classList.toggle("chosen", Boolean(target.files?.length)));
$("cancel").addEventListener("click", cancel);
$("remove").addEventListener("click", cancel);
for (const id of ["blend", "contours", "grid", "jacobian"]) $(id).addEventListener("input", draw);
$("register").disabled = true;
begin().catch(finish);
