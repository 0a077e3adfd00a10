// What is asked of the server. Its addresses are relative, so that the page may lie anywhere.

/** What the server said, in words, and with which status. */
export class Refused extends Error {
  constructor(status, words) {
    super(words);
    this.status = status;
  }
}

const TRIES = 5;

/** Ask, and return the answer; where the server is busy, ask again after a second. */
async function ask(path, options = {}) {
  for (let left = TRIES; ; left -= 1) {
    let answer;
    try {
      answer = await fetch(path, options);
    } catch {
      throw new Refused(0, "The server does not answer. Is it still running?");
    }
    if (answer.ok) return answer;
    if (answer.status === 503 && left > 0) {
      await new Promise((done) => { setTimeout(done, 1000); });
      continue;
    }
    const said = await answer.json().catch(() => ({}));
    throw new Refused(answer.status, said.error || `The server answered with ${answer.status}.`);
  }
}

let longest = Infinity;

function post(path, value) {
  const body = JSON.stringify(value);
  // What is far too long the server does not read, and cannot answer.
  if (body.length > longest) {
    throw new Refused(413, `That is too much at once: pictures of ${body.length} bytes, and not of ${longest} at most.`);
  }
  return ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body });
}

export async function info() {
  const facts = await (await ask("info")).json();
  longest = facts.limits.max_megabytes * 1_000_000;
  return facts;
}

export const adapt = async (classes) => (await post("adapt", { classes })).json();
export const predict = async (task, images) => (await post("predict", { task, images })).json();
export const model = async (task, format) => (await ask(`tasks/${task}/model?format=${format}`)).blob();
// Nobody minds if it is gone already.
export const forget = (task) => ask(`tasks/${task}`, { method: "DELETE" }).catch(() => {});
