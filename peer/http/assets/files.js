// The table of files: search, sort, pages, what can be done with one.

import { ask, origin, Refused } from "./api.js";
import { button, make, size, time } from "./words.js";

const PAGE = 100;
const PAGE_MAX = 1000;

const rows = document.getElementById("rows");
const shown = document.getElementById("shown");
const pages = document.getElementById("pages");
const search = document.getElementById("search");
const details = document.getElementById("details");
const confirmation = document.getElementById("confirm");
const said = document.getElementById("said");

let files = [];
let cursor = null;
let total = 0;
let order = { key: "uploaded_at", falling: true };
let nodes = new Map();
let coming = new Map();

const link = (file) => `${origin()}/files/${encodeURIComponent(file.file_key)}`;

/** What a file is called, as far as it is shown; else its id. */
export const nameOf = (key) => files.find((file) => file.file_key === key)?.original_filename ?? key;

/** Say who is up, and which copies are missing, for the dots. */
export function know(members, items) {
  nodes = new Map(members.map((node) => [node.id, node]));
  coming = new Map();
  for (const item of items) {
    if (item.status !== "COMPLETED") coming.set(item.file_key, [...(coming.get(item.file_key) ?? []), item]);
  }
  draw();
}

// One after the other: an answer to an older question must not take the place of a newer one's.
let turn = Promise.resolve();
const inTurn = (work) => (turn = turn.then(work, work));

/** Load the newest files anew, as many as are shown; with `anew` the first page. */
export const refresh = (anew = false) =>
  inTurn(async () => {
    const wanted = anew ? PAGE : Math.max(PAGE, files.length);
    const found = await page(null, Math.min(wanted, PAGE_MAX));
    files = found.files;
    cursor = found.next;
    total = found.total;
    draw();
  });

const more = () =>
  inTurn(async () => {
    const found = await page(cursor, PAGE);
    files = [...files, ...found.files];
    cursor = found.next;
    draw();
  });

function page(after, limit) {
  const query = new URLSearchParams({ limit });
  const name = search.elements.name.value;
  if (name) query.set("name", name);
  if (after) query.set("after", after);
  return ask(`/files?${query}`);
}

function draw() {
  const sorted = [...files].sort((one, other) => {
    const [a, b] = [one[order.key], other[order.key]];
    const step = typeof a === "string" ? a.localeCompare(b) : a - b;
    return order.falling ? -step : step;
  });
  rows.replaceChildren(...sorted.map(row));
  shown.textContent = total ? `${files.length} of ${total} files` : "No files yet.";
  pages.replaceChildren(...(cursor ? [button("Show more", "Show more files", more)] : []));
  for (const head of document.querySelectorAll("th[data-sort]")) {
    const sorts = head.dataset.sort === order.key;
    head.ariaSort = sorts ? (order.falling ? "descending" : "ascending") : "none";
  }
}

function row(file) {
  const name = make("a", { href: link(file), download: file.original_filename }, file.original_filename);
  return make(
    "tr",
    { "data-key": file.file_key },
    make("td", { class: "name" }, name),
    make("td", { class: "number" }, size(file.size_bytes)),
    make("td", { class: "time" }, make("time", { datetime: file.uploaded_at }, time(file.uploaded_at))),
    make("td", { class: "copies" }, ...dots(file)),
    make(
      "td",
      { class: "actions" },
      button("Details", `Details of ${file.original_filename}`, () => show(file)),
      " ",
      button("Delete", `Delete ${file.original_filename}`, () => remove(file)),
    ),
  );
}

/** A dot for each copy: on a disk, on one that is down, on its way, missing. */
function dots(file) {
  const found = file.replicas.map((node) =>
    nodes.get(node)?.status === "DOWN" ? ["◐", "soon", `${node} is down`] : ["●", "good", `on ${node}`],
  );
  for (const item of coming.get(file.file_key) ?? []) {
    const fails = item.status === "FAILED" || nodes.get(item.target_node_id)?.status === "DOWN";
    found.push(fails ? ["○", "bad", `missing on ${item.target_node_id}`] : ["◌", "soon", `coming to ${item.target_node_id}`]);
  }
  const words = found.map(([, , text]) => text).join(", ") || "no copy";
  return [
    make("span", { role: "img", "aria-label": words, title: words }, ...found.map(([dot, kind]) => make("span", { class: `dot ${kind}` }, dot))),
  ];
}

async function show(file) {
  const curl = `curl -o '${file.original_filename.replaceAll("'", "'\\''")}' '${link(file)}'`;
  const versions = await ask(`/files/${encodeURIComponent(file.file_key)}/versions`).catch(() => null);
  const facts = [
    ["Id", file.file_key],
    ["Size", `${file.size_bytes} bytes`],
    ["Type", file.content_type],
    ["SHA-256", file.checksum_sha256],
    ["Uploaded", time(file.uploaded_at)],
    ["Copies on", file.replicas.join(", ") || "no peer"],
    ["Versions", `${versions?.count ?? 1}`],
    ["Link", link(file)],
    ["Command", curl],
  ];
  details.querySelector("h2").textContent = file.original_filename;
  details.querySelector("dl").replaceChildren(...facts.flatMap(([term, fact]) => [make("dt", {}, term), make("dd", {}, fact)]));
  const form = details.querySelector("form");
  form.querySelectorAll("button[type=button]").forEach((old) => old.remove());
  form.append(" ", button("Copy link", "Copy the link", () => copy(link(file))), " ", button("Copy command", "Copy the curl command", () => copy(curl)));
  details.showModal();
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    said.textContent = "Copied.";
  } catch {
    said.textContent = `This browser does not let the page copy; here it is: ${text}`;
  }
}

function remove(file) {
  confirmation.querySelector("h2").textContent = `Delete ${file.original_filename}?`;
  confirmation.querySelector("p").textContent = "It goes from every peer, and cannot be brought back.";
  confirmation.returnValue = "no";
  confirmation.addEventListener("close", () => confirmation.returnValue === "yes" && removeNow(file), { once: true });
  confirmation.showModal();
}

async function removeNow(file) {
  try {
    const answer = await ask(`/files/${encodeURIComponent(file.file_key)}`, { method: "DELETE" });
    const later = file.replicas.filter((node) => !answer.deleted_nodes.includes(node));
    const rest = later.length ? `; ${later.join(", ")} follow${later.length > 1 ? "" : "s"} when back` : "";
    said.textContent = `${file.original_filename}: deleted on ${answer.deleted_from} of ${answer.total_nodes}${rest}.`;
  } catch (error) {
    said.textContent = error instanceof Refused ? error.message : "The peer does not answer; see whether the file is still there.";
  }
  await refresh();
}

search.addEventListener("submit", (event) => {
  event.preventDefault();
  refresh(true);
});

for (const head of document.querySelectorAll("th[data-sort]")) {
  const key = head.dataset.sort;
  const name = head.textContent;
  head.replaceChildren(
    button(name, `Sort by ${name.toLowerCase()}`, () => {
      order = { key, falling: order.key === key ? !order.falling : key !== "original_filename" };
      draw();
    }),
  );
}
