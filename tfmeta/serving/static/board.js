// The board on which characters are drawn, with a mouse, a finger, a pen or the keyboard.

const WIDTH = 18;
const STEP = 8;
const KEYS = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] };

const dialog = document.getElementById("board");
const canvas = dialog.querySelector("canvas");
const count = dialog.querySelector(".count");
const pen = canvas.getContext("2d");

let strokes = []; // lists of points
let at = null; // where the keyboard's pen is, once it was moved
let down = false; // whether that pen is down
let added = 0;
let take = () => {};

/** Open the board; `taken` is called with each drawing, as a file. */
export function draw(title, taken) {
  take = taken;
  added = 0;
  count.textContent = "";
  dialog.querySelector("h2").textContent = title;
  clear();
  dialog.showModal();
  canvas.focus();
}

function clear() {
  strokes = [];
  at = null;
  down = false;
  show();
}

function show() {
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.lineWidth = WIDTH;
  pen.lineCap = "round";
  pen.lineJoin = "round";
  pen.strokeStyle = "#000";
  for (const points of strokes) {
    pen.beginPath();
    pen.moveTo(...points[0]);
    for (const point of points) pen.lineTo(...point);
    pen.stroke();
  }
}

/** Show where the keyboard's pen is, on top of the drawing. */
function showPen() {
  show();
  if (at === null) return;
  pen.lineWidth = 2;
  pen.strokeStyle = down ? "#c02020" : "#1f5fa8";
  pen.beginPath();
  pen.arc(...at, WIDTH / 2, 0, 2 * Math.PI);
  pen.stroke();
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  const scale = canvas.width / box.width;
  return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
}

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  at = null;
  down = false;
  strokes.push([place(event)]);
  show();
});

canvas.addEventListener("pointermove", (event) => {
  if (!canvas.hasPointerCapture(event.pointerId)) return;
  strokes.at(-1).push(place(event));
  show();
});

canvas.addEventListener("keydown", (event) => {
  const move = KEYS[event.key];
  if (!move && event.key !== " ") return;
  event.preventDefault();
  at ??= [canvas.width / 2, canvas.height / 2];
  if (move) {
    at = at.map((x, i) => Math.min(canvas.width, Math.max(0, x + move[i])));
    if (down) strokes.at(-1).push(at);
  } else {
    down = !down;
    if (down) strokes.push([at]);
  }
  showPen();
});

function add() {
  if (strokes.length === 0) {
    count.textContent = "Draw something first.";
    return;
  }
  show(); // without the keyboard's pen
  canvas.toBlob((blob) => {
    added += 1;
    count.textContent = `${added} added. Draw another, or close.`;
    take(blob);
    clear();
    canvas.focus();
  }, "image/png");
}

function undo() {
  strokes.pop();
  down = false;
  show();
}

const actions = { add, undo, clear, close: () => dialog.close() };
dialog.addEventListener("click", (event) => actions[event.target.dataset.do]?.());
