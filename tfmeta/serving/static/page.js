// The page: classes with their pictures, pictures that are asked about, and what is said of them.

import { draw } from "./board.js";
import { forgotten, pictureOf } from "./pictures.js";
import * as server from "./server.js";
import { answerOf, button, chooser, dropping, element, image, keepingFocus } from "./parts.js";

const SHARES = 4; // classes whose share is shown, the likeliest first
const WAIT = 400; // milliseconds without a change before the server is asked

const at = (id) => document.getElementById(id);
const status = at("status");

let facts = null; // what the server says of itself
let classes = []; // {name, pictures, show}
let others = []; // {picture, answer}
let task = null; // what the server has learnt of the classes as they are now
let changes = 0; // how often the classes changed
let timer = 0;
let busy = Promise.resolve();
let reading = 0; // lots of files that are read; the server is asked when all are there

function say(words, kind = "") {
  status.textContent = words;
  status.className = kind;
}

/** Why the classes cannot be learnt yet, or nothing. */
function lacking() {
  const names = classes.map((each) => each.name.trim());
  if (facts.ways !== null && classes.length !== facts.ways) {
    return `This model tells exactly ${facts.ways} classes apart; there are ${classes.length}.`;
  }
  if (names.some((name) => name === "")) return "Give each class a name.";
  if (new Set(names).size < names.length) return "Give each class a name of its own.";
  const empty = classes.filter((each) => each.pictures.length === 0);
  if (classes.length === 0 || empty.length > 0) {
    return `Next: a few pictures of ${empty.map((each) => `“${each.name.trim()}”`).join(", ") || "a class"}.`;
  }
  return "";
}

function classesChanged() {
  changes += 1;
  if (task !== null) server.forget(task);
  task = null;
  for (const other of others) other.answer = null;
  showAnswers();
  later();
}

/** Do one thing after another; what goes wrong with one does not stop the next. */
function inTurn(action) {
  busy = busy.then(action).catch((error) => say(error.message, "wrong"));
}

/** Bring the answers up to date, once nothing has changed for a moment. */
function later() {
  clearTimeout(timer);
  timer = setTimeout(() => inTurn(bringUpToDate), WAIT);
  const why = lacking();
  for (const each of at("downloads").children) each.disabled = why !== "";
  if (why) say(why);
  else if (others.length === 0) say("Ready: ask about other pictures.", "ready");
}

/** Run something that asks the server; what goes wrong is said. */
async function attempt(words, action) {
  say(words);
  try {
    return await action();
  } catch (error) {
    say(error.message, "wrong");
    return null;
  }
}

/** Return the task of the classes as they are, which is learnt if it is not yet. */
async function learnt() {
  if (task !== null) return task;
  const since = changes;
  const shown = classes.map((each) => ({
    name: each.name.trim(),
    images: each.pictures.map((picture) => picture.data),
  }));
  const made = (await server.adapt(shown)).task;
  if (since === changes) task = made;
  return made;
}

/** Do something with the task; one that the server has forgotten is learnt again. */
async function withTask(action) {
  try {
    return await action(await learnt());
  } catch (error) {
    if (error.status !== 404) throw error;
    task = null;
    return action(await learnt());
  }
}

async function bringUpToDate() {
  const wanted = facts.transductive ? others : others.filter((other) => other.answer === null);
  if (reading > 0 || lacking() || wanted.length === 0 || wanted.every((other) => other.answer !== null)) return;
  const since = changes;
  const words = facts.unknown && task === null
    ? "Learning, and finding when to say “unknown”. That takes longer the first time …"
    : "Looking …";
  const images = wanted.map((other) => other.picture.data);
  const said = await attempt(words, () => withTask((known) => server.predict(known, images)));
  if (said === null || since !== changes) return;
  wanted.forEach((other, i) => {
    const shares = classes.map((each, k) => ({ name: each.name.trim(), share: said.probabilities[i][k] }));
    other.answer = {
      label: said.labels[i],
      unknown: said.unknown[i],
      shares: shares.sort((a, b) => b.share - a.share).slice(0, SHARES),
      nearest: (said.nearest?.[i] ?? []).map((near) => ({ ...near, ...exampleAt(near.example) })),
    };
  });
  say(`Answered: ${others.length}.`, "ready");
  showAnswers();
}

/** Return the picture of an example, counted through all classes. */
function exampleAt(number) {
  return { picture: classes.flatMap((each) => each.pictures)[number] };
}

/** Read files, and give what can be sent of them to `take`. */
async function read(files, take) {
  const side = 2 * Math.max(160, ...[facts.size].flat());
  reading += 1;
  for (const file of files) {
    const picture = await attempt("Reading …", () => pictureOf(file, side));
    if (picture !== null) take(picture);
  }
  reading -= 1;
}

function addOthers(files) {
  return read(files, (picture) => {
    others.unshift({ picture, answer: null });
    showAnswers();
  }).then(later);
}

function addPictures(each, files) {
  return read(files, (picture) => {
    each.pictures.push(picture);
    each.show();
  }).then(classesChanged);
}

/** Return what shows a class; `each.show` brings it up to date and leaves the focus where it is. */
function cardOf(each) {
  const named = () => each.name.trim() || "this class";
  const take = (files) => addPictures(each, files);
  const name = element("input", { type: "text", value: each.name, maxLength: 100 });
  name.setAttribute("aria-label", "Name of the class");
  const remove = button("Remove", () => {
    each.pictures.forEach(forgotten);
    classes = classes.filter((other) => other !== each);
    card.remove();
    classesChanged();
    at("add").focus();
  });
  const pictures = element("ul", { className: "pictures" });
  const choose = chooser("", take);
  const pen = drawer(() => `Draw for ${named()}`, take);
  const card = element(
    "div",
    { className: "zone class" },
    element("div", { className: "name" }, name, remove),
    pictures,
    element("div", { className: "buttons" }, choose, pen),
  );
  dropping(card, take);
  each.show = () => {
    remove.setAttribute("aria-label", `Remove class ${named()}`);
    pen.setAttribute("aria-label", `Draw for ${named()}`);
    choose.firstElementChild.setAttribute("aria-label", `Pictures for ${named()}`);
    keepingFocus(pictures, name, each.pictures.map((picture, i) => {
      const without = button("×", () => {
        forgotten(picture);
        each.pictures.splice(i, 1);
        each.show();
        classesChanged();
      });
      without.setAttribute("aria-label", `Remove picture ${i + 1} of ${named()}`);
      return element("li", {}, image(picture, `Picture ${i + 1} of ${named()}`), without);
    }));
  };
  name.addEventListener("input", () => {
    each.name = name.value;
    each.show();
    classesChanged();
  });
  each.show();
  return card;
}

function drawer(words, take) {
  const made = button("Draw", () => draw(words(), (blob) => take([blob])));
  made.setAttribute("aria-label", words());
  return made;
}

function showAnswers() {
  keepingFocus(at("answers"), at("others").querySelector("input"), others.map((other, i) => (
    answerOf(other, i + 1, () => {
      forgotten(other.picture);
      others.splice(i, 1);
      showAnswers();
      if (facts.transductive) classesChanged();
    }))));
  at("clear").hidden = others.length === 0;
}

function addClass() {
  let number = classes.length + 1;
  while (classes.some((each) => each.name === `class ${number}`)) number += 1;
  const each = { name: `class ${number}`, pictures: [] };
  classes.push(each);
  at("classes").append(cardOf(each));
}

async function download(format) {
  const words = "Making the file …";
  const blob = await attempt(words, () => withTask((known) => server.model(known, format)));
  if (blob === null) return;
  const link = element("a", { href: URL.createObjectURL(blob), download: `adapted-${format}.zip` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  say(`The file adapted-${format}.zip is downloaded.`, "ready");
}

function describe() {
  const parts = [facts.title];
  if (facts.ways !== null) parts.push(`exactly ${facts.ways} classes`);
  if (facts.transductive) parts.push("pictures that are asked about together influence each other");
  parts.push(facts.unknown ? "says “unknown” of what is none of the classes" : "always names a class");
  at("about").textContent = `${parts.join("; ")}.`;
}

async function begin() {
  facts = await attempt("Loading …", server.info);
  if (facts === null) return;
  describe();
  for (let i = 0; i < (facts.ways ?? 2); i += 1) addClass();
  at("add").addEventListener("click", () => {
    addClass();
    classesChanged();
    at("classes").lastElementChild.querySelector("input").select();
  });
  at("clear").addEventListener("click", () => {
    others.forEach((other) => forgotten(other.picture));
    others = [];
    showAnswers();
    later();
    at("others").querySelector("input").focus();
  });
  const zone = at("others");
  zone.querySelector(".buttons").append(
    chooser("Pictures to ask about", addOthers), drawer(() => "Draw to ask about it", addOthers));
  dropping(zone, addOthers);
  // What falls beside a place for it must not take the page's place.
  for (const kind of ["dragover", "drop"]) {
    document.addEventListener(kind, (event) => event.preventDefault());
  }
  const names = { keras: "Keras model", saved_model: "SavedModel" };
  at("downloads").append(...facts.formats.map((kind) => button(names[kind] ?? kind, () => {
    inTurn(() => download(kind));
  })));
  later();
}

begin();
