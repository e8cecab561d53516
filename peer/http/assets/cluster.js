// The cluster: one sentence, a card for each peer, what is missing where.

import { ask, askOne, Refused } from "./api.js";
import { nameOf } from "./files.js";
import { button, duration, make, many, size, time } from "./words.js";

const cards = document.getElementById("cards");
const queue = document.getElementById("queue");
const queueShown = document.getElementById("queue-shown");
const warnings = document.getElementById("warnings");
const line = document.getElementById("sentence");
const said = document.getElementById("said");

const owns = new Map();

/** Show how the cluster is, with what each peer said of itself last. */
export function draw(files, nodes, missing) {
  const [words, kind] = sentence(files, nodes, missing);
  line.textContent = words;
  line.className = kind;
  const lacks = new Map(missing.targets.map((target) => [target.node_id, target]));
  const kept = new Map([...cards.children].map((card) => [card.dataset.node, card]));
  cards.replaceChildren(...nodes.map((node) => card(kept.get(node.id), node, lacks.get(node.id))));
  const open = missing.items.filter((item) => item.status !== "COMPLETED");
  queueShown.textContent = missing.missing ? `${open.length} of ${missing.missing}` : "None.";
  queue.replaceChildren(
    ...open.map((item) =>
      make("tr", {}, ...[nameOf(item.file_key), item.target_node_id, item.status, item.retry_count, item.next_attempt ? time(item.next_attempt) : "", item.error_message ?? ""].map((cell) => make("td", {}, `${cell}`))),
    ),
  );
}

/** Everything in one sentence, and how good that is. */
export function sentence(files, nodes, missing) {
  const down = nodes.filter((node) => node.status === "DOWN").map((node) => node.id);
  const up = nodes.length - down.length;
  const all = files === 1 ? "The one file is where it should be" : `All ${files} files are where they should be`;
  if (!files && !down.length) return [`No files yet; ${up} of ${nodes.length} nodes are up.`, "good"];
  if (missing.missing) {
    const left = missing.seconds_left === null ? "" : `, some ${duration(missing.seconds_left)} to go`;
    const waits = missing.targets.filter((target) => down.includes(target.node_id)).map((target) => target.node_id);
    const [lack, they, them] = missing.missing === 1 ? ["copy is", "it is", "it"] : ["copies are", "they are", "them"];
    const why = waits.length ? `; ${waits.join(", ")} will fetch ${them} when back` : `; ${they} being fetched${left}`;
    return [`${missing.missing} ${lack} missing${why}.`, waits.length ? "bad" : "soon"];
  }
  if (down.length) return [`${down.join(", ")} ${down.length > 1 ? "are" : "is"} down; no copy is missing.`, "soon"];
  return [`${all}, on ${up} of ${nodes.length} nodes.`, "good"];
}

function card(known, node, lack) {
  const made = known ?? make("article", { class: "card", "data-node": node.id }, make("h3", {}, node.id), make("dl"), make("p"));
  const state = node.membership === "member" ? node.state : `${node.state}, ${node.membership}`;
  const since = node.status === "DOWN" && node.down_since ? ` since ${time(node.down_since)}` : "";
  const own = (node.status === "UP" && owns.get(node.id)) || {};
  const facts = [
    ["State", make("span", { class: { alive: "good", suspect: "soon" }[node.state] ?? "bad" }, `${state}${since}`)],
    ["Answers in", node.latency_ms === 9999 ? "–" : `${node.latency_ms} ms`],
    ["Zone", node.zone || "–"],
    ["Files", own.copies === undefined ? "–" : `${own.copies} of ${own.files}`],
    ["Disk", own.disk_free_bytes === undefined ? "–" : `${size(own.disk_free_bytes)} of ${size(own.disk_total_bytes)} free`],
    ["Missing", lack ? `${many(lack.missing, "copy", "copies")}, ${size(lack.missing_bytes)}${lack.seconds_left === null ? "" : `, ${duration(lack.seconds_left)} to go`}` : "nothing"],
    ["Version", own.version ?? "–"],
    ["Address", node.address],
  ];
  made.querySelector("dl").replaceChildren(...facts.flatMap(([term, fact]) => [make("dt", {}, term), make("dd", {}, fact)]));
  if (!known) made.querySelector("p").append(button("Recover", `Make ${node.id} fetch what it lacks now`, () => recover(node.id)));
  made.querySelector("button").disabled = node.status === "DOWN";
  return made;
}

async function recover(id) {
  said.textContent = `${id} looks for what it lacks …`;
  try {
    const found = await ask(`/nodes/${encodeURIComponent(id)}/recover`, { method: "POST", signal: null });
    said.textContent = found.total ? `${id} fetched ${found.success} of ${found.total} files.` : `${id} lacks nothing.`;
  } catch (error) {
    said.textContent = error instanceof Refused ? error.message : `${id} does not answer.`;
  }
}

/** Ask each peer what it says of itself. */
export async function look(nodes) {
  const found = await Promise.all(nodes.map(async (node) => [node.id, node.status === "UP" ? await askOne(node.address, "/node") : null]));
  const loud = [];
  for (const [id, own] of found) {
    if (own) owns.set(id, own);
    for (const warning of own?.warnings ?? []) loud.push(`${id}: ${warning}`);
  }
  warnings.hidden = !loud.length;
  warnings.replaceChildren(...loud.map((warning) => make("li", {}, warning)));
}
