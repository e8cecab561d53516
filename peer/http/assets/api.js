// Where the peers are, and how to ask them: the one that this page came from as long as it answers, then another one.

const PATIENCE_MS = 8000;

const told = document.querySelector('meta[name="minidfs-peers"]').content.split(" ").filter(Boolean);
const home = location.origin;

export const place = new EventTarget();
let base = home;
let known = told;

/** The base of links to files. */
export const origin = () => base;

/** Remember where the members are, as the cluster says now; those that this page may not ask, as its policy is older. */
export function remember(addresses) {
  known = addresses.filter((address) => address === home || told.includes(address));
  return addresses.filter((address) => !known.includes(address));
}

/** What went wrong with a request, as the peer says it. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** The JSON that a peer answers. Throws Refused, and TypeError when no peer can be reached. */
export async function ask(path, options = {}) {
  let failure;
  for (const candidate of [base, ...[home, ...known].filter((address) => address !== base)]) {
    let answer;
    try {
      answer = await fetch(candidate + path, { signal: AbortSignal.timeout(PATIENCE_MS), cache: "no-store", ...options });
    } catch (error) {
      // What changes something may have been done: only who asked can tell whether to ask again.
      if (options.method && options.method !== "GET") throw error;
      failure = error;
      continue;
    }
    move(candidate);
    const said = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Refused(answer.status, said.error ?? `status ${answer.status}`);
    return said;
  }
  throw failure;
}

/** The JSON that one peer answers; null when it does not. */
export async function askOne(address, path) {
  try {
    const answer = await fetch(address + path, { signal: AbortSignal.timeout(PATIENCE_MS), cache: "no-store" });
    return answer.ok ? await answer.json() : null;
  } catch {
    return null;
  }
}

function move(candidate) {
  if (candidate === base) return;
  base = candidate;
  place.dispatchEvent(new Event("moved"));
}
