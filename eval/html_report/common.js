/* Functions that the scripts of all pages share. */
"use strict";
const $ = (id) => document.getElementById(id);
const seconds = (value) => `${Number(value.toFixed(2))}`;

function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "style") Object.entries(value).forEach(([k, v]) => node.style.setProperty(k, v));
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null) node.setAttribute(key, value);
  }
  node.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return node;
}

/* Return the values that eval/html_report/videos.py packs. */
function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed.steps), (character) => character.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const step = (packed.high - packed.low) / 65535;
  return Array.from({ length: bytes.length / 2 }, (_, index) => packed.low + step * view.getUint16(2 * index, true));
}

/* Return for each detection, best first, the first lane where it overlaps no better detection. */
function lanes(rows) {
  const ends = [];
  return rows.map(([, start, end]) => {
    let lane = ends.findIndex((taken) => taken.every(([a, b]) => end <= a || start >= b));
    if (lane < 0) lane = ends.push([]) - 1;
    ends[lane].push([start, end]);
    return lane;
  });
}
