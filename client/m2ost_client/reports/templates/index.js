"use strict";
const PAGE = 100;
const byId = (id) => document.getElementById(id);
const records = JSON.parse(byId("data").textContent);
const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
const headers = [...document.querySelectorAll("th[data-key]")];
const view = { key: "name", descending: false, page: 0, found: records };
const grouped = (value) => value.toLocaleString("en");

for (const record of records) {
  const words = [record.name, record.slide, record.reason, record.release, record.mpp_source];
  record.text = words.filter(Boolean).join("\n").toLowerCase();
}

function element(name, className, ...children) {
  const made = document.createElement(name);
  made.className = className;
  made.append(...children);
  return made;
}

function nameCell(record) {
  const cell = element("td", "name");
  if (record.page) {
    const link = element("a", "", record.name);
    link.href = record.page;
    cell.append(link);
  } else {
    cell.append(record.name);
  }
  if (record.reason) {
    cell.append(element("small", "reason", record.reason));
  }
  if (record.untrained) {
    cell.append(element("small", "", "UNTRAINED network"));
  }
  return cell;
}

function numberCell(value, note) {
  const cell = element("td", "number", value === undefined ? "–" : grouped(value));
  if (note) {
    cell.title = note;
  }
  return cell;
}

function row(record) {
  const picture = element("td", "picture");
  if (record.picture) {
    const image = document.createElement("img");
    image.loading = "lazy";
    image.alt = "";
    image.src = record.picture;
    picture.append(image);
  }
  const state = record.missing ? `${grouped(record.missing)} without a value` : record.state;
  return element(
    "tr",
    "",
    picture,
    nameCell(record),
    element("td", "", element("span", `state ${record.state}`, state)),
    numberCell(record.spots),
    numberCell(record.mpp, record.mpp_source && `source: ${record.mpp_source}`),
    numberCell(record.tissue),
    numberCell(record.speed),
    element("td", "number", (record.finished || "–").slice(0, 16).replace("T", " ")),
    element("td", "", element("code", "", record.release || "–")),
  );
}

function draw() {
  const first = view.page * PAGE;
  const shown = view.found.slice(first, first + PAGE);
  byId("rows").replaceChildren(...shown.map(row));
  const all = view.found.length === records.length;
  byId("count").textContent = all
    ? `${grouped(records.length)} slides`
    : `${grouped(view.found.length)} of ${grouped(records.length)} slides`;
  byId("page").textContent = shown.length
    ? `${grouped(first + 1)}–${grouped(first + shown.length)} of ${grouped(view.found.length)}`
    : "none found";
  byId("previous").disabled = view.page === 0;
  byId("next").disabled = first + PAGE >= view.found.length;
  for (const header of headers) {
    const direction = view.descending ? "descending" : "ascending";
    header.setAttribute("aria-sort", header.dataset.key === view.key ? direction : "none");
  }
}

// What a slide lacks comes last, whichever way the column runs.
function compare(a, b) {
  const [x, y] = [a[view.key], b[view.key]];
  if (x === undefined || y === undefined) {
    return (x === undefined) - (y === undefined);
  }
  const order = typeof x === "number" ? x - y : collator.compare(x, y);
  return view.descending ? -order : order;
}

function find() {
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const state = byId("state").value;
  view.found = records.filter(
    (record) => (!state || record.state === state) && words.every((word) => record.text.includes(word)),
  );
  view.page = 0;
  draw();
}

function sortBy(key) {
  view.descending = view.key === key && !view.descending;
  view.key = key;
  records.sort(compare);
  find();
}

for (const header of headers) {
  header.querySelector("button").addEventListener("click", () => sortBy(header.dataset.key));
}
byId("search").addEventListener("input", find);
byId("state").addEventListener("change", find);
byId("previous").addEventListener("click", () => {
  view.page -= 1;
  draw();
});
byId("next").addEventListener("click", () => {
  view.page += 1;
  draw();
});
records.sort(compare);
find();
