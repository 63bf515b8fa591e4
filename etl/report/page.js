"use strict";
// The fields of a row, in the order in which the program writes them.
const KEY = 0, TITLE = 1, DATE = 2, OUTCOME = 3, HOST = 4, URL_ = 5, ERROR = 6, MESSAGE = 7, TEXT = 8, FLAGS = 9, AT = 10, PICTURE = 11;
const PAGE = 120;

const rows = [], pictures = [];
for (const block of document.querySelectorAll("script[type='application/json']")) {
  const part = JSON.parse(block.textContent);
  for (const row of part.rows) rows.push(row);
  for (const picture of part.pictures) pictures.push(picture);
  block.remove();
}
// Lower-cased once, so that each letter typed costs only a search.
const words = rows.map(row => [row[TEXT], row[TITLE], row[KEY]].join("\n").toLowerCase());

const form = document.querySelector(".filters"), sheet = document.querySelector(".sheet");
const more = document.querySelector(".more button"), dialog = document.querySelector("dialog");
const count = form.elements.count;
let found = [], shown = 0;

function choices(name, values) {
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) || 0) + 1);
  for (const [value, number] of [...counts].sort((a, b) => b[1] - a[1])) {
    const option = document.createElement("option");
    option.value = value;
    option.textContent = value + " (" + number.toLocaleString("en") + ")";
    form.elements[name].append(option);
  }
}

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

function picture(row) {
  const box = element("div", "picture");
  const data = row[PICTURE] === null ? null : pictures[row[PICTURE]];
  if (data) {
    const image = element("img");
    image.src = "data:image/webp;base64," + data;
    image.alt = row[TITLE] || row[KEY];
    image.decoding = "async";
    box.append(image);
  } else {
    box.textContent = row[ERROR] ? "no picture: " + row[ERROR] : "no picture";
  }
  return box;
}

function tags(row) {
  const line = element("div", "tags");
  line.append(element("span", ["failed", "invalid"].includes(row[OUTCOME]) ? "bad" : "", row[OUTCOME]));
  for (const flag of row[FLAGS]) line.append(element("span", "bad", flag));
  if (row[ERROR]) line.append(element("span", "bad", row[ERROR]));
  return line;
}

function card(row) {
  const item = element("li"), article = element("article");
  article.tabIndex = 0;
  article.setAttribute("role", "button");
  const said = row[TEXT] || row[MESSAGE] || (row[OUTCOME] === "captioned" ? "(no words)" : "");
  article.append(picture(row), element("div", "title", row[TITLE] || row[KEY]), element("p", "words", said), tags(row));
  article.addEventListener("click", () => open(row));
  article.addEventListener("keydown", event => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(row); }
  });
  item.append(article);
  return item;
}

function open(row) {
  const body = dialog.querySelector("div"), list = element("dl");
  const facts = [
    ["Key", row[KEY]], ["Title", row[TITLE]], ["Date", row[DATE]], ["Caption", row[TEXT]], ["Outcome", row[OUTCOME]],
    ["Flags", row[FLAGS].join(", ")], ["Error", row[ERROR]], ["Message", row[MESSAGE]], ["Source", row[URL_]],
    ["Captioned", row[AT] ? new Date(row[AT]).toISOString() : ""],
  ];
  for (const [name, value] of facts) if (value) list.append(element("dt", "", name), element("dd", "", value));
  body.replaceChildren(picture(row), list);
  dialog.showModal();
}

function filter() {
  const wanted = form.elements, text = wanted.text.value.trim().toLowerCase();
  found = [];
  for (let n = 0; n < rows.length; n++) {
    const row = rows[n];
    if ((!wanted.outcome.value || row[OUTCOME] === wanted.outcome.value) && (!wanted.host.value || row[HOST] === wanted.host.value)
      && (!wanted.flag.value || row[FLAGS].includes(wanted.flag.value)) && (!wanted.error.value || row[ERROR] === wanted.error.value)
      && (!text || words[n].includes(text))) found.push(row);
  }
  const order = wanted.order.value;
  if (order === "newest") found.sort((a, b) => b[AT] - a[AT]);
  if (order === "shortest" || order === "longest") {
    const sign = order === "shortest" ? 1 : -1;
    found = found.filter(row => row[TEXT]).sort((a, b) => sign * (a[TEXT].length - b[TEXT].length));
  }
  count.textContent = found.length.toLocaleString("en") + " of " + rows.length.toLocaleString("en") + " records";
  shown = 0;
  sheet.replaceChildren();
  show();
}

function show() {
  const next = found.slice(shown, shown + PAGE);
  sheet.append(...next.map(card));
  shown += next.length;
  more.hidden = shown >= found.length;
}

choices("outcome", rows.map(row => row[OUTCOME]));
choices("flag", rows.flatMap(row => row[FLAGS]));
choices("error", rows.map(row => row[ERROR]).filter(Boolean));
choices("host", rows.map(row => row[HOST]).filter(Boolean));
let waiting = 0;
form.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(filter, 120); });
form.addEventListener("reset", () => setTimeout(filter));
form.addEventListener("submit", event => { event.preventDefault(); filter(); });
more.addEventListener("click", show);
new IntersectionObserver(entries => { if (entries.some(entry => entry.isIntersecting) && !more.hidden) show(); }, { rootMargin: "600px" }).observe(more.parentElement);
for (const button of document.querySelectorAll("button[data-error]")) {
  button.addEventListener("click", () => {
    form.reset();
    setTimeout(() => { form.elements.error.value = button.dataset.error; filter(); form.scrollIntoView(); });
  });
}
filter();
