// Keeps the page true: asks again every few seconds, and at once when a peer says that something happened.

import { ask, origin, place, Refused, remember } from "./api.js";
import * as cluster from "./cluster.js";
import * as files from "./files.js";
import { isBusy, upload } from "./uploads.js";
import { make, sentence, time } from "./words.js";

const LOOK_MS = 5000;
const SETTLE_MS = 300;
const EVENTS_MAX = 200;
const QUEUE_MAX = 200;
const FILES_CHANGE = new Set(["uploaded", "deleted", "registered", "heard", "copied", "rot"]);

const list = document.getElementById("events");
const line = document.getElementById("sentence");
const moved = document.getElementById("moved");
const drop = document.getElementById("drop");
const chosen = document.getElementById("chosen");

document.documentElement.classList.add("scripted");

let due = null;
let filesChanged = true;
let looking = false;
let before = "";

/** Look soon; what happens at the same time costs one look. */
function lookSoon(changesFiles) {
  filesChanged ||= changesFiles;
  due ??= setTimeout(look, SETTLE_MS);
}

async function look() {
  clearTimeout(due);
  due = null;
  if (looking) return lookSoon(false);
  looking = true;
  try {
    const [nodes, queue, few, health] = await Promise.all([
      ask("/nodes"), ask(`/replication-queue?limit=${QUEUE_MAX}`), ask("/files?limit=1"), ask("/health"),
    ]);
    renew(remember(nodes.map((node) => node.address)));
    document.getElementById("peer").textContent = health.node_id;
    document.getElementById("version").textContent = health.version;
    cluster.draw(few.total, nodes, queue);
    files.know(nodes, queue.items);
    // Copies that others made are no event here, but fewer that are missing.
    const now = `${few.total} ${queue.missing}`;
    filesChanged ||= now !== before;
    before = now;
    if (filesChanged) {
      filesChanged = false;
      await files.refresh().catch((error) => {
        filesChanged = true;
        throw error;
      });
    }
    await cluster.look(nodes);
    cluster.draw(few.total, nodes, queue);
  } catch (error) {
    const why = error instanceof Refused ? error.message : "no peer answers this page";
    line.textContent = `Nothing can be shown now: ${why}. The page asks again every few seconds.`;
    line.className = "bad";
  } finally {
    looking = false;
  }
}

/** Load the page anew, once, for members that came since: its policy names those it may ask. */
function renew(strangers) {
  const names = strangers.join(" ");
  if (!names || isBusy() || sessionStorage.getItem("renewed for") === names) return;
  sessionStorage.setItem("renewed for", names);
  location.reload();
}

// What happens, as it happens.

let source = null;
const heard = new Map(); // by the life of a peer, the number of its newest event that is shown

function watch() {
  source?.close();
  source = new EventSource(`${origin()}/events`);
  source.addEventListener("message", (message) => note(JSON.parse(message.data)));
  source.addEventListener("error", () => lookSoon(false));
}

function note(event) {
  const [life, number] = event.id.split("-");
  if (Number(number) <= (heard.get(life) ?? 0)) return;
  heard.set(life, Number(number));
  list.prepend(make("li", { "data-kind": event.kind }, make("time", { datetime: event.at }, time(event.at)), sentence(event)));
  while (list.children.length > EVENTS_MAX) list.lastChild.remove();
  lookSoon(FILES_CHANGE.has(event.kind));
}

place.addEventListener("moved", () => {
  moved.hidden = origin() === location.origin;
  moved.textContent = `The peer this page came from does not answer; it goes on through ${origin()}.`;
  watch();
});

// Files to upload.

const take = (found) => found.length && upload([...found], () => lookSoon(true));

chosen.addEventListener("change", () => {
  take(chosen.files);
  chosen.value = "";
});
for (const kind of ["dragenter", "dragover"]) {
  drop.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
}
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  take(event.dataTransfer.files);
});

watch();
look();
setInterval(look, LOOK_MS);
