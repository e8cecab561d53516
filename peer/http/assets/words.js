// How numbers, times and events are said, and elements made: names are text, never markup.

const UNITS = ["bytes", "KiB", "MiB", "GiB", "TiB"];

export function size(bytes) {
  let unit = 0;
  let value = bytes;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit && value < 10 ? value.toFixed(1) : Math.round(value)} ${UNITS[unit]}`;
}

export const time = (text) => new Date(text).toLocaleString();

/** So many of something: "1 copy", "2 copies". */
export const many = (count, one, several) => `${count} ${count === 1 ? one : several}`;

/** How long something takes, roughly. */
export function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3600)} h`;
}

/** An element with attributes, and texts or elements in it. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== false && value !== null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

export const button = (text, label, act) => make("button", { type: "button", "aria-label": label, click: act }, text);

const named = (event) => event.filename ?? event.file_key;

const SAID = {
  started: (event) => `${event.node} has started`,
  joined: (event) => `${event.node} has joined the cluster`,
  alive: (event) => `${event.node} is up`,
  suspect: (event) => `${event.node} does not answer`,
  down: (event) => `${event.node} is down`,
  out: (event) => `${event.node} has been down for long; others take its share`,
  draining: (event) => `${event.node} is leaving the cluster`,
  stays: (event) => `${event.node} is a full member again`,
  left: (event) => `${event.node} has left the cluster`,
  doubled: (event) => `another process answers as ${event.node}, at ${event.address}`,
  uploaded: (event) => `${named(event)} was uploaded through ${event.node} (${size(event.size_bytes)})`,
  registered: (event) => `${named(event)} was registered through ${event.node}`,
  deleted: (event) => `${event.file_key} was deleted through ${event.node}`,
  heard: (event) => `heard of ${many(event.changes, "change", "changes")}`,
  copied: (event) => `fetched ${many(event.copies, "missing copy", "missing copies")} (${size(event.size_bytes)})`,
  rot: (event) => `found bad bytes in ${event.file_keys.join(", ")}; they are replaced from another peer`,
  "disk full": () => "the disk is full: this peer is read-only but for deletions",
  "disk has room": () => "there is room on the disk again",
};

/** An event in a sentence. */
export const sentence = (event) => (SAID[event.kind] ?? (() => event.kind))(event);
