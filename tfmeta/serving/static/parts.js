// What the page is built of. Names are put in as text, never as HTML.

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export function button(words, action) {
  const made = element("button", { type: "button" }, words);
  made.addEventListener("click", action);
  return made;
}

export function image(picture, words) {
  return element("img", { src: picture.url, alt: words });
}

/** Fill a list anew; the button in it that has the focus keeps it, or the next one, or else `other`. */
export function keepingFocus(list, other, children) {
  const at = [...list.querySelectorAll("button")].indexOf(document.activeElement);
  list.replaceChildren(...children);
  if (at < 0) return;
  const buttons = list.querySelectorAll("button");
  (buttons[Math.min(at, buttons.length - 1)] ?? other).focus();
}

/** A button that has files chosen, and gives them to `take`. */
export function chooser(words, take) {
  const input = element("input", { type: "file", accept: "image/*", multiple: true });
  input.setAttribute("aria-label", words);
  input.addEventListener("change", () => {
    const files = [...input.files];
    input.value = ""; // so that the same file can be chosen again
    take(files);
  });
  return element("label", { className: "file" }, input, "Choose files");
}

/** Have files that are dropped on a place given to `take`. */
export function dropping(zone, take) {
  const over = (is) => (event) => {
    event.preventDefault();
    zone.classList.toggle("over", is);
  };
  zone.addEventListener("dragover", over(true));
  zone.addEventListener("dragleave", over(false));
  zone.addEventListener("drop", (event) => {
    over(false)(event);
    take([...event.dataTransfer.files]);
  });
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;

/** What is said of one picture. */
export function answerOf({ picture, answer }, number, remove) {
  const without = button("×", remove);
  without.setAttribute("aria-label", `Remove answer ${number}`);
  const made = element("li", { className: "answer" }, image(picture, `Picture ${number}`));
  if (answer === null) {
    made.append(element("h3", {}, "…"), without, element("div"));
    return made;
  }
  const title = element("h3", {}, answer.unknown ? "unknown" : answer.label);
  const said = element("div", {}, sharesOf(answer.shares), nearestOf(answer.nearest));
  if (answer.unknown) {
    title.className = "unknown";
    said.prepend(element("p", { className: "hint" }, "If it had to be one of these:"));
  }
  made.append(title, without, said);
  return made;
}

function sharesOf(shares) {
  return element("dl", { className: "shares" }, ...shares.flatMap(({ name, share }) => {
    const bar = element("span");
    bar.style.width = `${100 * share}%`;
    const behind = element("dd", { className: "bar" }, bar);
    behind.setAttribute("aria-hidden", "true");
    return [element("dt", { title: name }, name), behind, element("dd", {}, percent(share))];
  }));
}

function nearestOf(nearest) {
  if (nearest.length === 0) return "";
  return element("div", { className: "nearest" }, "Nearest:", ...nearest.map((near) => element(
    "figure",
    { title: `distance ${near.distance.toFixed(2)}` },
    image(near.picture, `a picture of ${near.label}`),
    element("figcaption", {}, near.label),
  )));
}
