"use strict";
const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const centers = new Float32Array(bytes(data.centers).buffer);
const components = bytes(data.components);
const colours = bytes(data.colours);
const levels = bytes(data.levels);
const count = centers.length / 2;
const canvas = byId("canvas");
const scale = [canvas.width / data.size[0], canvas.height / data.size[1]];
const half = data.side / 2;
const number = (value) => String(Number(value.toPrecision(3)));

function rgb(table, i) {
  return `rgb(${table[3 * i]} ${table[3 * i + 1]} ${table[3 * i + 2]})`;
}

// Outwards to whole pixels: neighbours meet without a seam, though a grid's centres are whole level-0 pixels.
function square(i) {
  const left = Math.floor((centers[2 * i] - half) * scale[0]);
  const top = Math.floor((centers[2 * i + 1] - half) * scale[1]);
  const right = Math.ceil((centers[2 * i] + half) * scale[0]);
  const bottom = Math.ceil((centers[2 * i + 1] + half) * scale[1]);
  return [left, top, right - left, bottom - top];
}

function drawMap(gene) {
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  for (let i = 0; i < count; i += 1) {
    context.fillStyle = gene === null ? rgb(components, i) : rgb(colours, levels[gene * count + i]);
    context.fillRect(...square(i));
  }
}

function drawBar() {
  const context = byId("bar").getContext("2d");
  for (let level = 0; level < colours.length / 3; level += 1) {
    context.fillStyle = rgb(colours, level);
    context.fillRect(level, 0, 1, 1);
  }
}

function svg(name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) {
    element.setAttribute(key, value);
  }
  return element;
}

function drawHistogram(gene) {
  const histogram = byId("histogram");
  const most = Math.max(...gene.counts);
  const width = 240 / gene.counts.length;
  const bars = gene.counts.map((spots, i) => {
    const height = (98 * spots) / most;
    return svg("rect", { x: i * width + 0.5, y: 100 - height, width: width - 1, height });
  });
  const place = gene.max > gene.min ? (240 * (gene.mean - gene.min)) / (gene.max - gene.min) : 120;
  bars.push(svg("line", { x1: place, x2: place, y1: 0, y2: 100 }));
  histogram.replaceChildren(...bars);
  histogram.setAttribute("aria-label", `Histogram of ${gene.name}: ${gene.counts.join(", ")} spots a bin`);
  byId("min").textContent = number(gene.min);
  byId("mean").textContent = `mean ${number(gene.mean)}`;
  byId("max").textContent = number(gene.max);
}

function caption(gene) {
  return gene ? `Predicted ${gene.name}` : "Principal components of the predicted expression, as RGB";
}

function shown() {
  const { value } = byId("gene");
  return value === "" ? null : Number(value);
}

function show() {
  const index = shown();
  const gene = index === null ? null : data.genes[index];
  drawMap(index);
  canvas.setAttribute("aria-label", caption(gene));
  byId("readout").textContent = caption(gene);
  byId("of-gene").hidden = gene === null;
  for (const button of document.querySelectorAll("#variable button")) {
    button.setAttribute("aria-pressed", String(gene !== null && button.textContent === gene.name));
  }
  if (gene) {
    byId("bar-label").textContent = `Colours of ${gene.name}: from its 1st to its 99th percentile`;
    byId("low").textContent = number(gene.low);
    byId("high").textContent = number(gene.high);
    drawHistogram(gene);
  }
}

function open(name) {
  const index = data.genes.findIndex((gene) => gene.name === name);
  byId("gene").value = index < 0 ? "" : String(index);
  show();
}

function readOut(event) {
  const box = canvas.getBoundingClientRect();
  const x = ((event.clientX - box.left) / box.width) * data.size[0];
  const y = ((event.clientY - box.top) / box.height) * data.size[1];
  const index = shown();
  const gene = index === null ? null : data.genes[index];
  let text = caption(gene);
  for (let i = 0; i < count; i += 1) {
    if (Math.abs(centers[2 * i] - x) <= half && Math.abs(centers[2 * i + 1] - y) <= half) {
      const at = `at x ${Math.round(centers[2 * i])}, y ${Math.round(centers[2 * i + 1])} px`;
      const level = gene && levels[index * count + i];
      const sign = level === 0 ? "≤" : level === 254 ? "≥" : "≈";
      const value = gene && gene.low + (level / 254) * (gene.high - gene.low);
      text = gene ? `${gene.name} ${sign} ${number(value)} ${at}` : `${text} · spot ${at}`;
      break;
    }
  }
  byId("readout").textContent = text;
}

byId("gene").addEventListener("change", show);
byId("opacity").addEventListener("input", (event) => {
  canvas.style.opacity = event.target.value / 100;
});
for (const button of document.querySelectorAll("#variable button")) {
  button.addEventListener("click", () => open(button.textContent));
}
byId("map").addEventListener("pointermove", readOut);
byId("map").addEventListener("pointerleave", () => {
  const index = shown();
  byId("readout").textContent = caption(index === null ? null : data.genes[index]);
});
byId("static").hidden = true;
canvas.hidden = false;
drawBar();
open(data.open);
