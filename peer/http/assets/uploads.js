// Uploads: several at once, each with its progress, a way to cancel it, and another try under the same id.

import { origin } from "./api.js";
import { button, make, size } from "./words.js";

const AT_ONCE = 3;

const list = document.getElementById("uploads");
const waiting = [];
let running = 0;

/** Whether something is on its way that a reload of the page would break off. */
export const isBusy = () => running + waiting.length > 0;

/** Take these files in; `done` is called after each. */
export function upload(files, done) {
  for (const file of files) waiting.push(new Upload(file, done));
  list.hidden = false;
  next();
}

function next() {
  while (running < AT_ONCE && waiting.length) {
    running += 1;
    waiting.shift().send();
  }
}

class Upload {
  constructor(file, done) {
    this.file = file;
    this.done = done;
    // The same at every try: what arrived before is replaced, and never there twice.
    this.id = self.crypto.randomUUID?.() ?? `${Date.now().toString(36)}-${Math.random().toString(36).slice(2)}`;
    this.bar = make("progress", { max: 1, value: 0, "aria-label": `Progress of ${file.name}` });
    this.said = make("span", { class: "said" }, "waiting");
    this.act = button("Cancel", `Cancel ${file.name}`, () => this.cancel());
    this.row = make("li", {}, make("span", { class: "name" }, file.name), this.bar, this.said, this.act);
    list.append(this.row);
  }

  send() {
    const form = new FormData();
    form.append("file", this.file);
    const request = (this.request = new XMLHttpRequest());
    const started = performance.now();
    request.open("POST", `${origin()}/files?file_id=${encodeURIComponent(this.id)}`);
    request.responseType = "json";
    request.upload.addEventListener("progress", (event) => {
      this.bar.value = event.total ? event.loaded / event.total : 1;
      const rate = event.loaded / Math.max(0.001, (performance.now() - started) / 1000);
      this.said.textContent = event.loaded < event.total ? `${size(rate)}/s` : "being copied";
    });
    request.addEventListener("load", () => this.end(request.status, request.response ?? {}));
    request.addEventListener("error", () => this.fail("the peer does not answer"));
    request.addEventListener("abort", () => this.fail("cancelled"));
    request.send(form);
  }

  cancel() {
    const at = waiting.indexOf(this);
    if (at >= 0) {
      waiting.splice(at, 1);
      this.offer("cancelled");
    } else {
      this.request.abort();
    }
  }

  end(status, said) {
    if (status !== 200) {
      this.fail(said.error ?? `status ${status}`);
      return;
    }
    const copies = said.durable_copies;
    this.bar.value = 1;
    this.said.textContent = `stored, on ${copies.join(", ")}`;
    this.said.className = "said good";
    this.act.replaceWith((this.act = button("Done", `Remove ${this.file.name} from this list`, () => this.forget())));
    this.over();
  }

  fail(why) {
    this.offer(why);
    this.over();
  }

  offer(why) {
    this.said.textContent = why;
    this.said.className = "said bad";
    this.act.replaceWith((this.act = button("Try again", `Try again to upload ${this.file.name}`, () => this.again())));
  }

  again() {
    this.said.className = "said";
    this.said.textContent = "waiting";
    this.act.replaceWith((this.act = button("Cancel", `Cancel ${this.file.name}`, () => this.cancel())));
    waiting.push(this);
    next();
  }

  forget() {
    this.row.remove();
    list.hidden = !list.children.length;
  }

  over() {
    running -= 1;
    this.done();
    next();
  }
}
