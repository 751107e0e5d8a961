// The newest lines of a log: the coordinator's as they come, a worker's asked for again and again.

import { clock, element } from "./format.js";
import { json } from "./source.js";

const KEPT = 500;
const EVERY = 3000;

export class Log {
  constructor() {
    this.lines = [];
    this.pane = document.getElementById("log-lines");
    this.source = document.getElementById("log-source");
    this.follow = document.getElementById("log-follow");
    this.warnings = document.getElementById("log-warnings");
    this.source.addEventListener("change", () => this.turn());
    this.warnings.addEventListener("change", () => this.draw());
    // Scrolled up, it stays there; at the end again, it follows. What is only not the end any more was not scrolled: its
    // lines have become longer, as when a phone is turned.
    this.top = 0;
    this.pane.addEventListener("scroll", () => {
      const { scrollTop, clientHeight, scrollHeight } = this.pane;
      if (scrollTop + clientHeight > scrollHeight - 30) this.follow.checked = true;
      else if (scrollTop < this.top) this.follow.checked = false;
      this.top = scrollTop;
    });
    this.follow.addEventListener("change", () => this.toEnd());
    new ResizeObserver(() => this.toEnd()).observe(this.pane);
    setInterval(() => this.poll(), EVERY);
  }

  // Which logs there are.
  async read() {
    const names = await json("api/logs");
    const known = [...this.source.options].map((option) => option.value);
    for (const name of names.filter((name) => !known.includes(name))) {
      this.source.append(element("option", { value: name }, name));
    }
  }

  get isOwn() {
    return this.source.value === "coordinator";
  }

  // A line of the coordinator's.
  add(line) {
    if (this.lines.length && line.number <= this.lines[this.lines.length - 1].number) {
      // Another coordinator counts from 1.
      if (line.number !== 1) return;
      this.lines = [];
      this.draw();
    }
    this.lines.push(line);
    if (this.lines.length > KEPT) this.lines.shift();
    if (!this.isOwn || !this.wanted(line)) return;
    this.pane.append(this.row(line));
    if (this.pane.childElementCount > KEPT) this.pane.firstElementChild.remove();
    this.toEnd();
  }

  wanted(line) {
    return !this.warnings.checked || line.level === "WARN" || line.level === "ERROR" || /\b(WARN|ERROR)\b/.test(line.text);
  }

  row(line) {
    const level = line.level || (/\b(WARN|ERROR)\b/.exec(line.text)?.[1] ?? "");
    const shown = line.level && line.level !== "INFO" ? `${line.level} ` : "";
    return element("div", { class: level || null },
      line.time ? element("time", { datetime: new Date(1000 * line.time).toISOString() }, `${clock(line.time)}  `) : null,
      `${shown}${line.text}`);
  }

  draw() {
    const lines = this.isOwn ? this.lines : this.others ?? [];
    this.pane.replaceChildren(...lines.filter((line) => this.wanted(line)).map((line) => this.row(line)));
    this.toEnd();
  }

  turn() {
    this.others = [];
    this.draw();
    this.poll();
  }

  async poll() {
    if (this.isOwn || document.hidden) return;
    const name = this.source.value;
    try {
      const lines = await json(`api/logs/${encodeURIComponent(name)}`);
      if (name !== this.source.value) return;
      const next = lines.slice(-KEPT).map((text) => ({ text, level: "" }));
      if (next.length === this.others.length && next.at(-1)?.text === this.others.at(-1)?.text) return;
      this.others = next;
    } catch (error) {
      this.others = [{ text: error.message, level: "ERROR" }];
    }
    this.draw();
  }

  toEnd() {
    if (this.follow.checked) this.pane.scrollTop = this.pane.scrollHeight;
  }
}
