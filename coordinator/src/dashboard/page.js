// The page: what is known of the run, and which part of it shows what.

import { Chart, smoothed } from "./charts.js";
import { duration, element, number, percent } from "./format.js";
import { Log } from "./log.js";
import { Runs } from "./runs.js";
import { follow, json } from "./source.js";
import { WorkersTable, showCheckpoints, showDecisions, showTiles } from "./tables.js";

const $ = (id) => document.getElementById(id);
// Points that are kept of a run; with more, neighbours are joined.
const MOST = 4000;
// Least time between two things that a screen reader is told.
const SPEAK = 60000;

const charts = {
  loss: new Chart($("chart-loss")),
  top1: new Chart($("chart-top1"), { whole: true, format: (value) => number(Number(value.toFixed(2))) }),
  lr: new Chart($("chart-lr"), { zero: true }),
  speed: new Chart($("chart-speed"), { zero: true, format: (value) => number(Number(value.toFixed(1))) }),
};
const workers = new WorkersTable();
const log = new Log();
const runs = new Runs(() => redraw());
let view = null;
let curves = { steps: [], epochs: [] };
// Points that come while the curves are being asked for.
let waiting = null;
let spoken = 0;

const isBefore = (point, at) => point.epoch < at.epoch || (point.epoch === at.epoch && (point.step ?? Infinity) < at.step);

// Adds a point, in place of those that it does again.
function add(point) {
  const list = point.kind === "epoch" ? curves.epochs : curves.steps;
  const at = { epoch: point.epoch, step: point.step ?? 0 };
  while (list.length && !isBefore({ epoch: list.at(-1).epoch, step: list.at(-1).step ?? 0 }, at)) list.pop();
  list.push(point);
  if (curves.steps.length > MOST) {
    curves.steps = curves.steps.flatMap((one, n, all) => {
      if (n % 2 === 0) return [];
      const mean = (name) => (one[name] + all[n - 1][name]) / 2;
      return [{ ...one, loss: mean("loss"), lr: mean("lr"), images_per_second: mean("images_per_second") }];
    });
  }
}

async function readCurves() {
  if (waiting) return;
  waiting = [];
  try {
    const name = view.run_dir.split("/").filter(Boolean).at(-1);
    curves = await json(`api/runs/${encodeURIComponent(name)}/curves?points=2000`);
  } catch {
    // Before the first point there is nothing, and what comes is added.
  }
  const late = waiting;
  waiting = null;
  late.filter((point) => point.kind !== "test").forEach(add);
  redraw();
}

let drawing = false;
function redraw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    draw();
  });
}

// Where a point stands across: as epochs that are done, steps that are done, or hours since the first point.
function places(curves, steps, axis) {
  const first = curves.steps[0]?.time ?? 0;
  const hours = (time) => (time - first) / 3600;
  const ofStep = {
    epoch: (p) => (steps ? p.epoch + (p.step + 1) / steps : p.epoch),
    step: (p) => p.global_step + 1,
    hour: (p) => hours(p.time),
  }[axis];
  // An epoch is complete at its end; its last step says when that was.
  const ends = new Map(curves.steps.map((point) => [point.epoch, point.time]));
  const ofEpoch = {
    epoch: (p) => p.epoch + 1,
    step: (p) => (p.epoch + 1) * (steps || 1),
    hour: (p) => (ends.has(p.epoch) ? hours(ends.get(p.epoch)) : NaN),
  }[axis];
  const line = (list, x, y) => list.map((p) => [x(p), p[y]]).filter((point) => Number.isFinite(point[0]));
  return {
    ofSteps: (name) => line(curves.steps, ofStep, name),
    ofEpochs: (name) => line(curves.epochs, ofEpoch, name),
  };
}

function draw() {
  const axis = $("axis").value;
  const weight = Number($("smooth").value);
  const outliers = $("outliers").checked;
  const own = places(curves, view?.steps_per_epoch, axis);
  const others = runs.others().map((run) => ({ ...run, ...places(run.curves, run.steps, axis) }));
  const soft = (points) => (weight > 0 ? { points: smoothed(points, weight), raw: points } : { points });
  const name = others.length ? "this run" : null;
  const ofSteps = (column) => [
    { name: name ?? "this run", colour: 0, ...soft(own.ofSteps(column)) },
    ...others.map((run) => ({ name: run.name, colour: run.colour, dash: run.dash, ...soft(run.ofSteps(column)), raw: undefined })),
  ];
  const loss = ofSteps("loss");
  loss[0].name = name ? "this run, training" : "training";
  loss.splice(1, 0, { name: name ? "this run, validation" : "validation", colour: 1, points: own.ofEpochs("val_loss") });
  charts.loss.show(loss, axis, outliers);
  charts.top1.show([
    { name: name ?? "this run", colour: 0, points: own.ofEpochs("top1") },
    ...others.map((run) => ({ name: run.name, colour: run.colour, dash: run.dash, points: run.ofEpochs("top1") })),
  ], axis, true);
  charts.lr.show(ofSteps("lr").map(({ raw, ...one }) => one), axis, true);
  charts.speed.show(ofSteps("images_per_second"), axis, outliers);
}

function showHead() {
  $("name").textContent = view.run_id || "ReLabel run";
  document.title = `${view.phase}: ${view.run_id}`;
  const data = view.dataset ? `, ${view.dataset.train_samples} images in ${view.dataset.classes} classes` : "";
  $("about").textContent = `${view.arch}${data}, ${view.batch_size} images a step, in ${view.run_dir}`;
  $("phase").textContent = view.phase;
  $("phase").className = `badge ${view.phase}`;
  $("reason").textContent = view.reason;
  $("version").textContent = `Version ${view.version}${view.lives > 1 ? `, coordinator ${view.lives} of this run` : ""}.`;
}

// Words of where the run is, and its bar.
function showPlace() {
  const { position, steps_per_epoch: steps, epochs } = view;
  if (!position || !steps) {
    $("place").textContent = "not begun";
    return;
  }
  const done = Math.min((position.epoch * steps + position.step) / (epochs * steps), 1);
  $("progress").value = done;
  const epoch = Math.min(position.epoch + 1, epochs);
  const left = view.eta_seconds === null ? "" : `, ${duration(view.eta_seconds)} left`;
  const validated = view.validating ? `, validated ${view.validating[0]} of ${view.validating[1]} images` : "";
  $("place").textContent = `epoch ${epoch} of ${epochs}, step ${position.step} of ${steps}, ${percent(done, 0)}${left}${validated}`;
}

// Tells a screen reader, not too often unless it is `urgent`.
function speak(words, urgent) {
  if (!urgent && Date.now() - spoken < SPEAK) return;
  spoken = Date.now();
  $("spoken").textContent = words;
}

async function showPictures() {
  const images = await json("api/images");
  $("pictures").hidden = $("nav-pictures").hidden = !images.length;
  const epochs = [...new Set(images.map((image) => image.epoch))].sort((a, b) => b - a);
  const select = $("pictures-epoch");
  const before = select.value;
  const newest = before === "" || before === select.options[0]?.value;
  select.replaceChildren(...epochs.map((epoch) => element("option", { value: epoch }, String(epoch + 1))));
  if (!newest) select.value = before;
  const list = $("pictures-list");
  const wanted = images.filter((image) => String(image.epoch) === select.value);
  const shown = wanted.map((image) => image.file).join();
  if (list.dataset.shown === shown) return;
  list.dataset.shown = shown;
  list.replaceChildren(...wanted.map((image) => {
    const words = `${image.title} in epoch ${image.epoch + 1}: the image with its crop, its label map, and what the crop is taught`;
    return element("figure", {}, element("figcaption", {}, words),
      element("a", { href: `images/${encodeURIComponent(image.file)}` },
        element("img", { src: `images/${encodeURIComponent(image.file)}`, alt: words, loading: "lazy" })));
  }));
}

const quietly = (work) => work().catch(() => {});

follow({
  link(state) {
    const words = { live: "live", lost: "no connection, trying again", over: "the run is over" }[state];
    if ($("link").textContent !== words) $("link").textContent = words;
    $("link").className = `link ${state}`;
    if (state === "lost") $("phase").className = "badge lost";
    if (state === "live" && view) {
      quietly(readCurves);
    }
  },
  view(fresh) {
    const first = view?.run_id !== fresh.run_id || view?.started !== fresh.started;
    const steps = view?.steps_per_epoch;
    view = { ...fresh, decisions: view?.decisions ?? [] };
    showHead();
    showPlace();
    showTiles(view);
    workers.show(view);
    showCheckpoints(view);
    if (first) {
      quietly(readCurves);
      quietly(() => runs.read());
      quietly(() => log.read());
      quietly(showPictures);
    } else if (steps !== view.steps_per_epoch) redraw();
    speak(`${view.phase}, ${$("place").textContent}, loss ${number(view.loss)}`);
  },
  decisions(decisions) {
    showDecisions(decisions);
    const last = decisions.at(-1);
    if (view && last?.warning && Date.now() / 1000 - last.time < 10) speak(last.words, true);
    // A worker that has come has a log.
    quietly(() => log.read());
  },
  point(point) {
    if (waiting) waiting.push(point);
    else if (point.kind !== "test") add(point);
    redraw();
    if (point.kind === "epoch") {
      speak(`epoch ${point.epoch + 1} is done: top-1 ${point.top1.toFixed(1)} percent, loss ${number(point.train_loss)}`, true);
      quietly(showPictures);
      quietly(() => runs.read());
    }
  },
  started(at) {
    curves.steps = curves.steps.filter((point) => isBefore(point, at));
    curves.epochs = curves.epochs.filter((point) => point.epoch < at.epoch);
    redraw();
    quietly(showPictures);
  },
  missed: () => quietly(readCurves),
  line: (line) => log.add(line),
  over(words) {
    $("phase").textContent = "over";
    $("phase").className = "badge";
    $("reason").textContent = words;
    speak(`the run is over: ${words}`, true);
  },
});

$("axis").addEventListener("change", redraw);
$("smooth").addEventListener("input", redraw);
$("outliers").addEventListener("change", redraw);
$("pictures-epoch").addEventListener("change", () => quietly(showPictures));
const theme = $("theme");
const paint = () => {
  if (theme.value === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme.value;
};
try {
  theme.value = localStorage.getItem("relabel-theme") ?? "auto";
} catch {
  // A browser that keeps nothing starts with the system's.
}
paint();
theme.addEventListener("change", () => {
  paint();
  try {
    localStorage.setItem("relabel-theme", theme.value);
  } catch {
    // It holds until the page is left.
  }
});
