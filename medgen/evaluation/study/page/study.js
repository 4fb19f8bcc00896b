"use strict";
// One question at a time: fetch it, draw its images, send the answer, which brings the next question.

const $ = (id) => document.getElementById(id);
const EXPLANATIONS = {
  single: "You will see images one at a time. About half are real, half were made by a computer. Say which. Take the time you need.",
  timed: "You will see images one at a time, each once and for a moment only, after a countdown. About half are real, half were made by a computer. Say which.",
  pair: "You will see two images: one is real, one was made by a computer. Choose the synthetic one.",
  grid: "You will see six images: some are real, some were made by a computer. Mark all synthetic ones by clicking or with the keys 1 to 6, then go on.",
};
const QUESTIONS = {
  single: "Is this image real or synthetic?", timed: "Was this image real or synthetic?",
  pair: "Which one is synthetic?", grid: "Which are synthetic?",
};
const RESET = { zoom: 1, x: 0, y: 0, level: 127.5, width: 255 };  // shows the stored values as they are
const MOST_ZOOM = 8;
const SLOP = 8;  // pixels a finger may wander in a tap
const view = { ...RESET };
let study, reader, trial, began, panels = [];
let busy = false;  // while an answer is on its way or an image is about to be shown

function show(id) {
  for (const part of ["start", "trial", "end"]) $(part).hidden = part !== id;
  if (id === "start") $("reader").focus();
}

function fail(error) {
  $("error").textContent = error.message;
  $("error").hidden = false;
}

async function call(path, body) {
  const options = body ? { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } } : {};
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer. Your answers so far are kept; try again in a moment.");
  }
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.error);
  return content;
}

function load(name) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("An image could not be loaded. Your answers so far are kept; try again in a moment."));
    image.src = `images/${name}.png`;
  });
}

// Images

function panel(image, name, number) {
  const figure = document.createElement("figure");
  const canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  figure.append(canvas);
  if (study.design === "grid" || study.design === "pair") {
    const key = document.createElement("span");
    key.className = "key";
    key.textContent = number + 1;
    figure.append(key);
    figure.addEventListener("click", (event) => { if (!figure.moved) toggle(number, event); });
  }
  const one = { figure, canvas, context, name, pixels: context.getImageData(0, 0, canvas.width, canvas.height), chosen: false };
  if (study.design !== "timed") drag(one);
  return one;
}

function place() {
  for (const one of panels) {
    one.canvas.style.transform = `translate(${view.x}%, ${view.y}%) scale(${view.zoom})`;
    one.figure.style.touchAction = view.zoom > 1 ? "none" : "pan-y";  // lets a small window be scrolled
  }
  $("zoom").value = view.zoom;
}

function paint() {
  const low = view.level - view.width / 2;
  const shade = Uint8ClampedArray.from({ length: 256 }, (_, value) => (value - low) * 255 / view.width);
  for (const one of panels) {
    const shown = new ImageData(new Uint8ClampedArray(one.pixels.data), one.pixels.width);
    for (let i = 0; study.grey && i < shown.data.length; i += 4) {
      shown.data[i] = shown.data[i + 1] = shown.data[i + 2] = shade[shown.data[i]];
    }
    one.context.putImageData(shown, 0, 0);
  }
  $("level").value = view.level;
  $("width").value = view.width;
}

function reset() {
  Object.assign(view, RESET);
  place();
  paint();
}

function moveTo(x, y) {
  const least = 100 * (1 - view.zoom);
  view.x = Math.min(0, Math.max(least, x));
  view.y = Math.min(0, Math.max(least, y));
  place();
}

function zoomAround(zoom, px, py) {  // px, py: the point that stays, in per cent of the frame
  zoom = Math.min(MOST_ZOOM, Math.max(1, zoom));
  const ratio = zoom / view.zoom;
  view.zoom = zoom;
  moveTo(px - (px - view.x) * ratio, py - (py - view.y) * ratio);
}

function drag({ figure }) {
  const pointers = new Map();
  let from;
  const at = (event) => {
    const box = figure.getBoundingClientRect();
    return [100 * (event.clientX - box.left) / box.width, 100 * (event.clientY - box.top) / box.height];
  };
  figure.addEventListener("contextmenu", (event) => event.preventDefault());
  figure.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoomAround(view.zoom * Math.exp(-event.deltaY / 500), ...at(event));
  }, { passive: false });
  figure.addEventListener("pointerdown", (event) => {
    figure.moved = pointers.size > 0;
    from = [event.clientX, event.clientY];
    pointers.set(event.pointerId, at(event));
    figure.setPointerCapture(event.pointerId);
  });
  figure.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    if (Math.hypot(event.clientX - from[0], event.clientY - from[1]) > SLOP) figure.moved = true;
    if (!figure.moved) return;
    const now = at(event);
    pointers.set(event.pointerId, now);
    const [dx, dy] = [now[0] - before[0], now[1] - before[1]];
    if (pointers.size === 2) {
      const [other] = [...pointers].filter(([id]) => id !== event.pointerId).map(([, where]) => where);
      const apart = (where) => Math.hypot(where[0] - other[0], where[1] - other[1]) || 1;
      zoomAround(view.zoom * apart(now) / apart(before), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
    } else if (event.buttons & 2 && study.grey) {
      view.width = Math.min(255, Math.max(1, view.width + 2 * dx));
      view.level = Math.min(255, Math.max(0, view.level - 2 * dy));
      paint();
    } else {
      moveTo(view.x + dx, view.y + dy);
    }
  });
  for (const end of ["pointerup", "pointercancel"]) {
    figure.addEventListener(end, (event) => pointers.delete(event.pointerId));
  }
}

// A timed image: countdown, image, noise

const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const frame = () => new Promise(requestAnimationFrame);

async function countDown({ figure, canvas }) {  // draws the eyes to the place, as in HYPE
  canvas.hidden = true;
  const number = document.createElement("span");
  number.id = "countdown";
  figure.append(number);
  for (const left of [3, 2, 1]) {
    number.textContent = left;
    await wait(500);
  }
  number.remove();
}

async function expose(one, milliseconds) {  // counts from the frame that shows it, to the nearest one
  const shown = await frame();
  one.canvas.hidden = false;
  while (await frame() - shown < milliseconds - 8);
  cover(one);
}

function cover(one) {  // noise, so that no afterimage stays
  const noise = one.context.createImageData(one.canvas.width, one.canvas.height);
  for (let i = 0; i < noise.data.length; i += 4) {
    noise.data.fill(Math.random() * 255, i, i + 3);
    noise.data[i + 3] = 255;
  }
  one.pixels = noise;
  paint();
}

// Questions and answers

async function present(next) {
  $("progress").max = next.total;
  if (!next.images) {
    show("end");
    return;
  }
  const images = await Promise.all(next.images.map(load));
  // Only now: if an image fails, the question before stays, and its answer can be sent again.
  trial = next;
  $("progress").value = next.done;
  $("count").textContent = `${next.done + 1} of ${next.total}`;
  panels = images.map((image, number) => panel(image, next.images[number], number));
  $("images").replaceChildren(...panels.map((one) => one.figure));
  reset();
  show("trial");
  if (next.milliseconds) {
    if (sessionStorage.getItem("seen") === next.trial) cover(panels[0]);  // reloading gives no second look
    else {
      await countDown(panels[0]);
      sessionStorage.setItem("seen", next.trial);
      expose(panels[0], next.milliseconds);
    }
  }
  began = performance.now();
}

async function alone(action) {  // one thing at a time
  if (busy) return;
  busy = true;
  $("answers").classList.add("waiting");
  try {
    await action();
    $("error").hidden = true;
  } catch (error) {
    if ($("trial").hidden) show("start");
    fail(error);
  } finally {
    busy = false;
    $("answers").classList.remove("waiting");
  }
}

function answer(numbers) {
  alone(async () => {
    const synthetic = numbers.map((number) => panels[number].name);
    const milliseconds = Math.round(performance.now() - began);
    await present(await call("api/answer", { reader, trial: trial.trial, synthetic, milliseconds }));
  });
}

function toggle(number, event) {
  const one = panels[number];
  if (!one) return;
  if (study.design === "pair") {
    if (event.detail < 2) answer([number]);
    return;
  }
  one.chosen = !one.chosen;
  one.figure.classList.toggle("chosen", one.chosen);
}

function button(text, key, action) {
  const one = document.createElement("button");
  const hint = document.createElement("kbd");
  one.type = "button";
  hint.textContent = key;
  one.append(text, " ", hint);
  // The second click of a double click would answer the next question unseen.
  one.addEventListener("click", (event) => { if (event.detail < 2) action(); });
  $("answers").append(one);
}

function begin(name) {
  return alone(async () => {
    $("reader").value = reader = name;
    const next = await call(`api/next?reader=${encodeURIComponent(reader)}`);
    sessionStorage.setItem("reader", reader);  // of this tab: two readers may use two
    $("trial").querySelector(".leave").textContent = `Not ${reader}?`;
    await present(next);
  });
}

function prepare() {
  const { design, grey, size } = study;
  $("explanation").textContent = EXPLANATIONS[design];
  $("question").textContent = QUESTIONS[design];
  $("images").className = design;
  $("images").style.setProperty("--aspect", size[1] / size[0]);
  $("tools").hidden = design === "timed";
  for (const part of document.querySelectorAll(".window")) part.hidden = !grey;
  if (design === "grid") {
    button("Next", "Enter", () => answer([...panels.keys()].filter((number) => panels[number].chosen)));
  } else if (design === "pair") {
    for (const number of [0, 1]) button(`Image ${number + 1}`, number + 1, () => answer([number]));
  } else {
    button("Real", "R", () => answer([]));
    button("Synthetic", "S", () => answer([0]));
  }
}

document.addEventListener("keydown", (event) => {
  if ($("trial").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.toLowerCase(), pressed = event.target.tagName === "BUTTON";
  const tools = !$("tools").hidden;
  if (tools && (key === "+" || key === "=")) zoomAround(view.zoom * 1.25, 50, 50);
  else if (tools && key === "-") zoomAround(view.zoom / 1.25, 50, 50);
  else if (tools && key === "0") reset();
  else if (event.repeat) {  // a key held down answers one question, not all
    if (pressed) event.preventDefault();
  } else if (study.design === "grid" && /^[1-6]$/.test(key)) toggle(Number(key) - 1);
  else if (!(pressed && key === "enter")) {
    for (const one of $("answers").children) {
      if (one.querySelector("kbd").textContent.toLowerCase() === key) one.click();
    }
  }
});
$("zoom").addEventListener("input", (event) => zoomAround(Number(event.target.value), 50, 50));
for (const name of ["level", "width"]) {
  $(name).addEventListener("input", (event) => {
    view[name] = Number(event.target.value);
    paint();
  });
}
$("reset").addEventListener("click", reset);
$("start").addEventListener("submit", (event) => {
  event.preventDefault();
  begin($("reader").value);
});
for (const one of document.querySelectorAll(".leave")) {
  one.addEventListener("click", () => {
    sessionStorage.clear();
    location.reload();
  });
}

(async () => {
  try {
    study = await call("api/study");
  } catch (error) {
    fail(error);
    return;
  }
  prepare();
  const known = sessionStorage.getItem("reader");
  if (known) await begin(known);
  else show("start");
})();
