// The runs beside this one, and which of them are drawn into the curves.

import { clock, element, number, percent } from "./format.js";
import { json } from "./source.js";

// Colours that are free for others: this run has the first two.
const COLOURS = [2, 3, 4, 5, 6];

export class Runs {
  // `changed` is called when other runs are to be drawn.
  constructor(changed) {
    this.changed = changed;
    this.picked = new Map();
    this.table = document.getElementById("runs-table");
    document.getElementById("runs-again").addEventListener("click", () => this.read());
  }

  async read() {
    try {
      this.told = await json("api/runs");
      await Promise.all([...this.picked.keys()].map((name) => this.fetch(name)));
    } catch (error) {
      this.table.replaceChildren(element("tbody", {}, element("tr", {}, element("td", {}, String(error.message)))));
      return;
    }
    this.show();
    this.changed();
  }

  async fetch(name) {
    const curves = await json(`api/runs/${encodeURIComponent(name)}/curves`);
    Object.assign(this.picked.get(name) ?? {}, { curves });
  }

  // The runs to be drawn: name, colour, dash, curves, steps of an epoch.
  others() {
    return [...this.picked].filter(([, one]) => one.curves).map(([name, one]) => ({ name, ...one }));
  }

  async pick(run, on) {
    if (on) {
      const taken = [...this.picked.values()].map((one) => one.colour);
      const colour = COLOURS.find((one) => !taken.includes(one)) ?? COLOURS[this.picked.size % COLOURS.length];
      this.picked.set(run.name, { colour, dash: 1 + (this.picked.size % 5), steps: run.steps_per_epoch });
      await this.fetch(run.name);
    } else {
      this.picked.delete(run.name);
    }
    this.changed();
  }

  show() {
    const { here, runs, unreadable } = this.told;
    const heads = [["draw", ""], ["run", ""], ["state", ""], ["network", ""], ["epochs", "number"], ["best top-1", "number"],
      ["loss", "number"], ["img/s", "number"], ["last written", ""], ["options that differ from this run's", ""]];
    const head = heads.map(([words, name]) => element("th", { scope: "col", class: name || null }, words));
    const rows = runs.map((run) => this.row(run, run.name === here));
    for (const [path, why] of unreadable) {
      rows.push(element("tr", {}, element("td", {}), element("th", { scope: "row" }, path), element("td", { class: "wide", colspan: 8 }, why)));
    }
    const focused = document.activeElement?.id;
    this.table.replaceChildren(element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
    if (focused?.startsWith("draw-")) document.getElementById(focused)?.focus();
  }

  row(run, isHere) {
    const box = element("input", { type: "checkbox", id: `draw-${run.name}`, "aria-label": `Draw ${run.name}`, checked: isHere || this.picked.has(run.name), disabled: isHere });
    box.addEventListener("change", () => this.pick(run, box.checked));
    const differences = run.differences === null ? "its options cannot be read"
      : run.differences.map((one) => `${one.key} ${one.there} (here ${one.here})`).join(", ");
    const step = run.last_step;
    return element("tr", {},
      element("td", {}, box),
      element("th", { scope: "row" }, run.name, isHere ? " (this one)" : ""),
      element("td", {}, run.state),
      element("td", {}, run.arch),
      element("td", { class: "number" }, `${run.epochs_done}/${run.epochs}`),
      element("td", { class: "number" }, run.best_top1 === null ? "–" : percent(run.best_top1)),
      element("td", { class: "number" }, step ? number(step.loss) : "–"),
      element("td", { class: "number" }, step ? number(Math.round(step.images_per_second)) : "–"),
      element("td", {}, run.updated ? clock(run.updated) : "–"),
      element("td", { class: "wide" }, differences || (isHere ? "" : "none")));
  }
}
