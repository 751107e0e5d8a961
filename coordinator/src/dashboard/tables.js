// The tables: workers, which can be sorted, checkpoints, and the list of decisions.

import { bytes, clock, element, number, percent, place, shape, short } from "./format.js";

// A cell that tells how a step's time was spent, by picture and by words.
function parts(worker) {
  const step = worker.step_seconds;
  const known = [["compute", worker.compute_seconds], ["data", worker.data_wait_seconds], ["peers", worker.peer_wait_seconds]];
  const picture = shape("svg", { class: "parts", viewBox: "0 0 130 12", "aria-hidden": "true" });
  let at = 0;
  const fill = (name, seconds) => {
    const width = Math.max(0, Math.min(130 - at, (130 * seconds) / step));
    picture.append(shape("rect", { class: name, x: at, y: 0, width, height: 12 }));
    at += width;
  };
  for (const [name, seconds] of known) if (Number.isFinite(seconds)) fill(name, seconds);
  fill("rest", step);
  return picture;
}

// Columns: heading, whether it is a number, what it is sorted by, what it shows.
const WORKERS = [
  ["rank", false, (w) => w.rank, (w) => w.rank],
  ["host", false, (w) => w.host, (w) => w.host],
  ["process", true, (w) => w.pid, (w) => w.pid],
  ["device", false, (w) => w.device, (w) => w.device],
  ["state", false, (w) => w.state, (w) => (w.slow ? `${w.state}, slow` : w.state)],
  ["step", true, (w) => w.step_seconds, (w) => short(w.step_seconds)],
  ["spent on", false, (w) => w.compute_seconds ?? w.peer_wait_seconds, (w) => (w.step_seconds ? parts(w) : "–")],
  ["computing", true, (w) => w.compute_seconds, (w) => short(w.compute_seconds)],
  ["images", true, (w) => w.data_wait_seconds, (w) => short(w.data_wait_seconds)],
  ["peers", true, (w) => w.peer_wait_seconds, (w) => short(w.peer_wait_seconds)],
  ["lost", true, (w) => w.lost_share, (w) => percent(w.lost_share ?? NaN, 0)],
  ["memory", true, (w) => w.memory_bytes, (w) => bytes(w.memory_bytes ?? NaN)],
  ["at", false, (w) => w.position && 1e9 * w.position.epoch + w.position.step, (w) => (w.position ? place(w.position.epoch, w.position.step) : "–")],
  ["heard", true, (w) => w.silent_seconds, (w) => `${w.silent_seconds.toFixed(1)} s ago`],
];

export class WorkersTable {
  constructor() {
    this.table = document.getElementById("workers-table");
    this.words = document.getElementById("workers-words");
    this.key = document.getElementById("workers-key");
    this.by = { column: 0, sign: 1 };
    this.heads = "";
  }

  show(view) {
    this.view = view;
    const { workers, world } = view;
    const slow = workers.filter((worker) => worker.slow).length;
    const least = view.min_workers < world ? `, ${view.min_workers} are enough` : "";
    const train = view.training === null ? "" : `${view.training} train, `;
    const few = workers.length < view.seated ? `; below, the ${workers.length} who stand out` : "";
    this.words.textContent = `${train}${view.seated} of ${world} seats are taken${least}${slow ? `, ${slow} slow` : ""}${few}`;
    // Columns that nobody has anything in are left out.
    const used = WORKERS.map((column, index) => [index, ...column])
      .filter(([, , , sort]) => workers.some((worker) => sort(worker) !== null && sort(worker) !== undefined));
    this.key.hidden = !used.some(([, name]) => name === "spent on");
    const heads = JSON.stringify([used.map((column) => column[0]), this.by]);
    if (heads !== this.heads) {
      // The headings stay where they are, so that the keyboard keeps its place.
      const focused = document.activeElement?.closest("#workers-table")
        ? document.activeElement.textContent : null;
      this.heads = heads;
      this.body = element("tbody");
      this.table.replaceChildren(element("thead", {}, element("tr", {}, ...used.map((column) => this.head(column)))), this.body);
      if (focused) [...this.table.querySelectorAll("button")].find((one) => one.textContent === focused)?.focus();
    }
    const [, , sort] = WORKERS[this.by.column];
    const value = (worker) => sort(worker) ?? -Infinity;
    const rows = [...workers].sort((a, b) => this.by.sign * (value(a) > value(b) ? 1 : value(a) < value(b) ? -1 : a.rank - b.rank));
    this.body.replaceChildren(...rows.map((worker) => element("tr", { class: worker.slow ? "slow" : null },
      ...used.map(([index, , isNumber, , show]) => element(index === 0 ? "th" : "td",
        { class: isNumber ? "number" : null, scope: index === 0 ? "row" : null }, show(worker))))));
    if (!workers.length) this.body.replaceChildren(element("tr", {}, element("td", {}, "nobody is here yet")));
  }

  head([index, name, isNumber]) {
    const sorted = this.by.column === index ? (this.by.sign > 0 ? "ascending" : "descending") : "none";
    const button = element("button", { type: "button", title: `Sort by ${name}` }, name);
    button.addEventListener("click", () => {
      this.by = { column: index, sign: this.by.column === index ? -this.by.sign : 1 };
      this.show(this.view);
    });
    return element("th", { scope: "col", class: isNumber ? "number" : null, "aria-sort": sorted }, button);
  }
}

export function showCheckpoints(view) {
  const table = document.getElementById("checkpoints-table");
  const rows = [...view.checkpoints].reverse().map((one) => element("tr", {},
    element("th", { scope: "row" }, one.file, one.file === view.checkpoint ? element("small", {}, "a resume begins here") : null),
    element("td", {}, place(one.position.epoch, one.position.step)),
    element("td", { class: "number" }, bytes(one.bytes)),
    element("td", {}, one.time ? clock(one.time) : "–")));
  if (!rows.length) {
    const words = view.checkpoint ? `${view.checkpoint} was there before this coordinator` : "none yet";
    rows.push(element("tr", {}, element("td", { colspan: 4 }, words)));
  }
  const heads = ["file", "goes on at", "size", "written"];
  const head = heads.map((words) => element("th", { scope: "col", class: words === "size" ? "number" : null }, words));
  table.replaceChildren(element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
}

export function showDecisions(decisions) {
  const list = document.getElementById("decisions-list");
  const lines = [...decisions].reverse().map((one) => element("li", { class: one.warning ? "warning" : null },
    element("time", { datetime: new Date(1000 * one.time).toISOString() }, clock(one.time)),
    element("span", {}, one.warning ? element("span", { class: "hidden" }, "Warning: ") : null, one.words)));
  list.replaceChildren(...(lines.length ? lines : [element("li", {}, "none yet")]));
}

// The tiles: a name, a value, and perhaps a word below it.
export function showTiles(view) {
  const best = view.best_epoch === null ? "" : `at epoch ${view.best_epoch + 1}`;
  const epoch = view.last_epoch;
  const waits = view.step_seconds ? `${percent(view.data_wait_seconds / view.step_seconds, 0)} waiting for images` : "";
  const skipped = view.totals.skipped ? `${view.totals.skipped} images skipped` : "";
  const tiles = [
    ["Loss", number(view.loss), epoch ? `validation ${number(epoch.val_loss)}` : ""],
    ["Top-1", epoch ? percent(epoch.top1) : "–", epoch ? `top-5 ${percent(epoch.top5)}` : "after the first epoch"],
    ["Best top-1", view.best_top1 === null ? "–" : percent(view.best_top1), best],
    ["Images a second", number(view.images_per_second && Math.round(view.images_per_second * 10) / 10), skipped],
    ["A step", short(view.step_seconds), waits],
    ["Learning rate", number(view.learning_rate), ""],
    ["Workers", `${view.seated} of ${view.world}`, `generation ${view.generation}`],
    ["Since it began", `${view.totals.steps} steps`, `${view.totals.images} images`],
  ];
  const made = tiles.map(([name, value, below]) => element("div", {}, element("dt", {}, name),
    element("dd", {}, value, below ? element("small", {}, below) : null)));
  document.getElementById("tiles").replaceChildren(...made);
}
