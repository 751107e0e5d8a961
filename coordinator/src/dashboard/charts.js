// Charts, drawn by hand as SVG. A chart takes series of points, and shows what stands under the pointer or under the
// keyboard's cursor as a line of text, which is what a screen reader is told too.

import { element, number, shape } from "./format.js";

const MARGIN = { top: 10, right: 14, bottom: 34, left: 56 };
const DASHES = ["", "6 4", "2 3", "9 3 2 3", "12 4", "4 2"];

// Round steps of an axis from `low` to `high`, about `count` of them, none smaller than `least`.
export function ticks(low, high, count, least = 0) {
  const rough = Math.max((high - low) / Math.max(count, 1), least);
  if (!(rough > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough) * power;
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) found.push(n * step);
  return found;
}

// The range of an axis: that of the values with a little air, and never empty. The few values that would press all
// others together are left outside, unless they are `wanted`.
export function range(values, zero, wanted) {
  const sorted = values.filter(Number.isFinite).sort((a, b) => a - b);
  if (!sorted.length) return [0, 1];
  let [low, high] = [sorted[0], sorted[sorted.length - 1]];
  if (!wanted && sorted.length >= 10) {
    const most = sorted[Math.floor(0.95 * (sorted.length - 1))];
    const width = most - sorted[Math.floor(0.05 * (sorted.length - 1))];
    if (high > most + 4 * width) high = most + 0.25 * width;
  }
  if (zero) low = Math.min(low, 0);
  const air = high > low ? 0.06 * (high - low) : Math.max(0.5 * Math.abs(high), 0.05);
  return [zero && low === 0 ? 0 : low - air, high + air];
}

// An exponential moving average that is not drawn towards its beginning.
export function smoothed(points, weight) {
  let sum = 0;
  let mass = 0;
  return points.map(([x, y]) => {
    if (!Number.isFinite(y)) return [x, y];
    sum = weight * sum + (1 - weight) * y;
    mass = weight * mass + (1 - weight);
    return [x, sum / mass];
  });
}

// The place in `points`, sorted by x, that is nearest to `x`.
function nearest(points, x) {
  let [low, high] = [0, points.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < x) low = middle;
    else high = middle;
  }
  return Math.abs(points[low][0] - x) <= Math.abs(points[high][0] - x) ? low : high;
}

export class Chart {
  // `zero`: whether the vertical axis begins at 0. `format`: how a value is written. `whole`: whether what stands across
  // comes in whole numbers.
  constructor(figure, { zero = false, format = number, whole = false } = {}) {
    Object.assign(this, { figure, zero, format, whole, series: [], across: "epoch", outliers: false, at: null });
    this.title = figure.querySelector("figcaption").textContent;
    this.plot = shape("svg", { class: "plot", tabindex: "0", role: "img" });
    this.readout = element("output", { class: "readout", "aria-live": "polite" });
    this.legend = element("ul", { class: "legend" });
    this.table = element("table");
    const scroll = element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${this.title}, table` });
    scroll.append(this.table);
    this.details = element("details", {}, element("summary", {}, "As a table"), scroll);
    figure.append(this.legend, this.plot, this.readout, this.details);
    this.plot.addEventListener("pointermove", (event) => this.point(event));
    this.plot.addEventListener("pointerdown", (event) => this.point(event));
    this.plot.addEventListener("pointerleave", () => this.move(null));
    this.plot.addEventListener("keydown", (event) => this.key(event));
    this.plot.addEventListener("blur", () => this.move(null));
    this.details.addEventListener("toggle", () => this.fillTable());
    new ResizeObserver(() => this.draw()).observe(this.plot);
  }

  // A series is {name, points: [[x, y]], colour: 0 to 6, dash, raw}; `raw` points are drawn faintly behind.
  // With `outliers` every value is within the picture.
  show(series, across, outliers) {
    this.series = series.filter((one) => one.points.length);
    Object.assign(this, { across, outliers });
    this.draw();
    this.fillTable();
  }

  draw() {
    const { width, height } = this.plot.getBoundingClientRect();
    if (width < 50) return;
    this.size = { width, height };
    const all = this.series.flatMap((one) => one.points.concat(one.raw ?? []));
    const last = all.reduce((most, point) => Math.max(most, point[0]), 0);
    this.x = [0, last > 0 ? last : 1];
    this.y = range(all.map((point) => point[1]), this.zero, this.outliers);
    const above = all.filter((point) => point[1] > this.y[1]).length;
    const across = (x) => MARGIN.left + ((x - this.x[0]) / (this.x[1] - this.x[0])) * (width - MARGIN.left - MARGIN.right);
    const up = (y) => height - MARGIN.bottom - ((y - this.y[0]) / (this.y[1] - this.y[0])) * (height - MARGIN.top - MARGIN.bottom);
    this.scale = { across, up };

    this.plot.replaceChildren();
    this.plot.setAttribute("viewBox", `0 0 ${width} ${height}`);
    for (const tick of ticks(this.y[0], this.y[1], height / 45)) {
      this.line("grid", MARGIN.left, up(tick), width - MARGIN.right, up(tick));
      this.text(MARGIN.left - 8, up(tick) + 4, "end", this.format(Number(tick.toPrecision(12))));
    }
    const bottom = height - MARGIN.bottom;
    for (const tick of ticks(this.x[0], this.x[1], width / 90, this.whole && this.across !== "hour" ? 1 : 0)) {
      this.line("axis", across(tick), bottom, across(tick), bottom + 4);
      this.text(across(tick), bottom + 17, "middle", number(Number(tick.toPrecision(12))));
    }
    this.line("axis", MARGIN.left, bottom, width - MARGIN.right, bottom);
    this.text(width - MARGIN.right, height - 3, "end", this.across);
    this.drawn = shape("svg", { x: 0, y: MARGIN.top - 4, width, height: bottom - MARGIN.top + 8, viewBox: `0 ${MARGIN.top - 4} ${width} ${bottom - MARGIN.top + 8}` });
    this.plot.append(this.drawn);
    for (const one of this.series) {
      if (one.raw) this.path(one.raw, `c${one.colour} raw`, 0);
    }
    for (const one of [...this.series].reverse()) this.path(one.points, `c${one.colour}`, one.dash);
    if (above) this.text(width - MARGIN.right, MARGIN.top + 4, "end", `${above} higher value${above > 1 ? "s" : ""} not shown`);
    if (!all.length) this.text(width / 2, height / 2, "middle", "nothing yet");
    this.cursor = this.line("cursor", 0, MARGIN.top, 0, bottom);
    this.cursor.setAttribute("visibility", "hidden");
    this.describe();
    this.drawLegend();
    if (this.at !== null) this.move(this.at);
  }

  line(name, x1, y1, x2, y2) {
    const line = shape("line", { class: name, x1, y1, x2, y2 });
    this.plot.append(line);
    return line;
  }

  text(x, y, anchor, words) {
    this.plot.append(shape("text", { x, y, "text-anchor": anchor }, words));
  }

  path(points, name, dash) {
    const { across, up } = this.scale;
    let way = "";
    let pen = false;
    for (const [x, y] of points) {
      if (Number.isFinite(y)) way += `${pen ? "L" : "M"}${across(x).toFixed(1)} ${up(y).toFixed(1)}`;
      pen = Number.isFinite(y);
    }
    this.drawn.append(shape("path", { class: name, d: way, "stroke-dasharray": DASHES[dash ?? 0] }));
    if (points.length > 40) return;
    for (const [x, y] of points.filter((point) => Number.isFinite(point[1]))) {
      this.drawn.append(shape("circle", { class: name, cx: across(x), cy: up(y), r: 2.2 }));
    }
  }

  drawLegend() {
    const lines = this.series.map((one) => {
      const dash = DASHES[one.dash ?? 0];
      const sample = shape("svg", { viewBox: "0 0 26 8", "aria-hidden": "true" },
        shape("line", { class: `c${one.colour}`, x1: 0, y1: 4, x2: 26, y2: 4, "stroke-dasharray": dash }));
      return element("li", {}, sample, one.name);
    });
    this.legend.replaceChildren(...(this.series.length > 1 ? lines : []));
    this.legend.hidden = this.series.length < 2;
  }

  // What a screen reader is told of the whole.
  describe() {
    const told = this.series.map((one) => {
      const [first, last] = [one.points[0], one.points[one.points.length - 1]];
      return `${one.name}: from ${this.format(first[1])} to ${this.format(last[1])}, ${one.points.length} points`;
    });
    const keys = "Left and right arrow read the values.";
    this.plot.setAttribute("aria-label", `${this.title}. ${told.join("; ") || "nothing yet"}. ${keys}`);
  }

  point(event) {
    if (!this.series.length || !this.scale) return;
    const box = this.plot.getBoundingClientRect();
    const part = (event.clientX - box.left - MARGIN.left) / (box.width - MARGIN.left - MARGIN.right);
    this.move(this.x[0] + Math.min(Math.max(part, 0), 1) * (this.x[1] - this.x[0]));
  }

  key(event) {
    const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity };
    if (event.key === "Escape") this.move(null);
    if (!(event.key in steps) || !this.series.length) return;
    event.preventDefault();
    const points = this.series[0].points;
    const now = this.at === null ? (event.key === "ArrowLeft" ? points.length : -1) : nearest(points, this.at);
    const next = Math.min(Math.max(now + steps[event.key], 0), points.length - 1);
    this.move(points[next][0]);
  }

  // Puts the cursor at `x`, or takes it away.
  move(x) {
    this.at = x;
    if (!this.cursor) return;
    this.cursor.setAttribute("visibility", x === null ? "hidden" : "visible");
    if (x === null || !this.series.length) {
      this.readout.textContent = "";
      return;
    }
    const place = this.series[0].points[nearest(this.series[0].points, x)][0];
    for (const end of ["x1", "x2"]) this.cursor.setAttribute(end, this.scale.across(place));
    const values = this.series.map((one) => {
      const value = this.format(one.points[nearest(one.points, place)][1]);
      return this.series.length > 1 ? `${one.name} ${value}` : value;
    });
    this.readout.textContent = `${this.across} ${number(place)}: ${values.join(", ")}`;
  }

  // The newest points of each series, made when the table is opened.
  fillTable() {
    if (!this.details.open) return;
    const rows = new Map();
    this.series.forEach((one, column) => {
      for (const [x, y] of one.points.slice(-200)) {
        if (!rows.has(x)) rows.set(x, Array(this.series.length).fill(null));
        rows.get(x)[column] = y;
      }
    });
    const sorted = [...rows].sort((a, b) => b[0] - a[0]).slice(0, 200);
    const heads = [this.across, ...this.series.map((one) => one.name)];
    const head = element("tr", {}, ...heads.map((words) => element("th", { scope: "col", class: "number" }, words)));
    const body = sorted.map(([x, values]) => element("tr", {}, element("th", { scope: "row", class: "number" }, number(x)),
      ...values.map((value) => element("td", { class: "number" }, value === null ? "" : this.format(value)))));
    this.table.replaceChildren(element("thead", {}, head), element("tbody", {}, ...body));
  }
}
