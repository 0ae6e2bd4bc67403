"use strict";
// Draws the figures that the server sends, in the colours of the page, and follows a running recording.

const dark = matchMedia("(prefers-color-scheme: dark)");
// This script comes before plotly.js, so that figures are fetched while the browser compiles plotly.js.
const plotly = new Promise((done) => addEventListener("DOMContentLoaded", done));
const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };

function colours() {
  // light-dark() is resolved only where a property uses it, so the colours are read from an element.
  const probe = document.createElement("span");
  document.body.append(probe);
  const read = (name) => {
    probe.style.color = `var(${name})`;
    return getComputedStyle(probe).color;
  };
  const found = { ink: read("--ink"), quiet: read("--quiet"), grid: read("--grid"), card: read("--card"), line: read("--line") };
  probe.remove();
  return found;
}

function themed(layout) {
  const { ink, quiet, grid, card, line } = colours();
  const narrow = innerWidth < 640;
  const result = { ...layout, font: { ...layout.font, color: quiet } };
  for (const name of Object.keys(layout).filter((each) => /^[xy]axis/.test(each))) {
    result[name] = { ...layout[name], gridcolor: grid, linecolor: line };
    // The unit does not fit beside a narrow plot; the note below the plot has it.
    const title = layout[name].title;
    if (narrow && title) result[name].title = { ...title, text: title.text.replace(/ \(.*\)$/, "") };
  }
  result.hoverlabel = { ...layout.hoverlabel, bgcolor: card, bordercolor: line, font: { color: ink } };
  result.legend = { ...layout.legend, font: { color: ink, size: narrow ? 11 : 12 } };
  result.margin = { ...layout.margin, ...(narrow ? { l: 48, r: 8 } : {}) };
  return result;
}

class Plot {
  constructor(element) {
    this.element = element;
    this.wait = element.querySelector(".wait");
    this.drawing = element.querySelector(".drawing");
    this.figure = null;
    this.busy = false;
    this.again = false;
  }

  async load() {
    if (this.busy) {
      this.again = true;
      return;
    }
    this.busy = true;
    try {
      // Panels stand below each other where there is no room for a row of them.
      const address = this.element.dataset.figure + (/panels-/.test(this.element.className) && innerWidth < 736 ? "&columns=1" : "");
      const answer = await fetch(address, { headers: { Accept: "application/json" } });
      const content = await answer.json();
      if (!answer.ok) throw new Error(content.detail);
      this.figure = content;
      await this.draw();
    } catch (error) {
      this.say(error.message || "The registry does not answer; reload the page to try again.");
    } finally {
      this.busy = false;
      if (this.again) {
        this.again = false;
        this.load();
      }
    }
  }

  async draw() {
    if (!this.figure) return;
    const { data, layout } = this.figure;
    if (!data.length) return this.empty(layout.annotations[0].text);
    await plotly;
    const first = !this.drawing.classList.contains("js-plotly-plot");
    await Plotly.react(this.drawing, data, { ...themed(layout), uirevision: "same" }, config);
    this.wait.hidden = true;
    this.done();
    if (first && this.element.dataset.click === "rate") this.drawing.on("plotly_click", (event) => toRate(event.points[0].x));
  }

  // Our own text, because it wraps; the text of plotly.js does not.
  empty(words) {
    this.wait.textContent = words;
    this.done();
  }

  done() {
    this.element.dataset.drawn = Number(this.element.dataset.drawn || 0) + 1;
    performance.mark("drawn");
  }

  say(sentence) {
    this.wait.textContent = sentence;
    this.wait.classList.add("wrong");
    this.wait.hidden = false;
  }
}

function toRate(rate) {
  const query = new URLSearchParams(location.search);
  query.set("lr_min", rate);
  query.set("lr_max", rate);
  query.delete("page");
  location.assign(`?${query}#recordings`);
}

const plots = [...document.querySelectorAll("[data-figure]")].map((element) => new Plot(element));
for (const plot of plots) plot.load();
dark.addEventListener("change", () => plots.forEach((plot) => plot.draw()));

const followed = document.querySelector("[data-events]");
if (followed) {
  const source = new EventSource(followed.dataset.events);
  const word = document.getElementById("live-word");
  let rows = null;
  const show = (state) => {
    for (const [name, value] of Object.entries(state)) {
      for (const element of document.querySelectorAll(`[data-live="${name}"]`)) {
        element.textContent = value === null ? "–" : name === "final_loss" ? value.toFixed(4) : value;
        if (name === "status") element.className = `status ${value}`;
      }
    }
    if (rows !== null && rows !== state.rows) plots.forEach((plot) => plot.load());
    rows = state.rows;
    following();
  };
  const following = () => {
    const status = document.querySelector('[data-live="status"]').textContent;
    word.textContent = status === "running" ? "live" : "waiting: new measurements will show here";
  };
  source.addEventListener("open", following);
  source.addEventListener("rows", (event) => show(JSON.parse(event.data)));
  source.addEventListener("end", (event) => {
    source.close();
    show(JSON.parse(event.data));
    word.textContent = "";
  });
  source.addEventListener("failure", (event) => {
    source.close();
    word.textContent = `no longer live: ${JSON.parse(event.data).detail}`;
  });
  source.addEventListener("error", () => { word.textContent = "connection lost, trying again"; });
  addEventListener("pagehide", () => source.close());
}

// A model that is too long for an address is sent by POST. Another family has other recordings.
const matcher = document.getElementById("matcher");
if (matcher) {
  matcher.addEventListener("submit", () => { matcher.method = matcher.elements.tensors.value.length > 4000 ? "post" : "get"; });
  matcher.elements.family.addEventListener("change", (event) => location.assign(`/match?family=${encodeURIComponent(event.target.value)}`));
}

// Without a permission, or over plain HTTP, the clipboard is reached by selecting the text only.
async function copy(element) {
  try {
    await navigator.clipboard.writeText(element.textContent);
    return true;
  } catch {
    getSelection().selectAllChildren(element);
    return document.execCommand("copy");
  }
}

for (const button of document.querySelectorAll("button[data-copy]")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    button.firstChild.textContent = await copy(document.getElementById(button.dataset.copy)) ? "Copied" : "Selected: press Ctrl+C";
  });
}
