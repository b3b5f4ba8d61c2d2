/* Player of one video: play head, current detections and list follow its time. Every text goes through textContent. */
(() => {
  const data = JSON.parse($("data").textContent);
  const LANE = 14, TRUTH = 12, CURVE = 42, ATTENTION = 56; // heights in pixels
  const SHOWN_AT_FIRST = 20, LEAST_SHARE = 0.05; // detections shown at first: number, and share of the best score
  const SHORTEST_VIEW = 2, NEAR = 0.05; // seconds
  const STEPS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600]; // seconds between ticks
  const player = $("player"), axis = $("axis");
  const charts = []; // [svg, units of its height]
  const groups = new Map(); // class -> { svg of detections, element }
  let playable = Boolean(player), virtualTime = 0; // the time without a player
  let duration = Math.max(data.duration, 0.1), view = [0, duration];
  let threshold = 0, shown = [], marks = new Map(), current = ""; // marks: detection -> [bar, item of the list]

  const time = () => (playable ? player.currentTime : virtualTime);
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  const stamp = (value, digits = 1) => {
    const whole = Math.floor(value / 60), rest = (value % 60).toFixed(digits).padStart(digits ? 3 + digits : 2, "0");
    return whole < 60 ? `${whole}:${rest}` : `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}:${rest}`;
  };
  const fixed = (score) => score.toFixed(2).replace("-0.00", "0.00").replace("-", "−");
  const span = ([, start, end]) => `${stamp(start)}–${stamp(end)}`;

  function shape(name, attributes, ...children) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    Object.entries(attributes).forEach(([key, value]) => node.setAttribute(key, value));
    node.append(...children);
    return node;
  }

  /* ---- tracks: the x axis of each chart is in seconds, its view box is what the zoom shows ---- */
  function track(name, height, units, ...children) {
    const svg = shape("svg", { preserveAspectRatio: "none", height }, ...children);
    charts.push([svg, units]);
    return element("div", { class: "track" }, element("span", {}, name), svg);
  }

  const bar = (kind, [start, end], lane = 0, text = "") =>
    shape("rect", { class: kind, x: start, width: end - start, y: lane + 0.1, height: 0.8 }, shape("title", {}, text));

  function line(kind, values, low, high) {
    const points = values.map((value, index) => `${((index + 0.5) / data.rate).toFixed(3)},${(1 - (value - low) / (high - low)).toFixed(4)}`);
    return shape("polyline", { class: `curve ${kind}`, points: points.join(" ") });
  }

  function attentionGroup() {
    const curves = data.attention.map(unpack);
    const fused = curves.length > 1 ? "fused" : "foreground";
    const names = [...curves.slice(1).map((_, index) => data.modalities[index] ?? `modality ${index + 1}`), fused];
    const kinds = [...names.slice(1).map((_, index) => `modality-${index}`), "fused"];
    const keys = names.map((name, index) => element("small", {}, key(kinds[index]), ` ${name}`));
    return element("div", { class: "group" }, element("h3", {}, "Attention", ...keys),
      track("0 to 1", ATTENTION, 1, ...curves.map((values, index) => line(kinds[index], values, -0.04, 1.04))));
  }

  const key = (kind) => shape("svg", { class: "line-key", viewBox: "0 0 26 10" }, shape("path", { class: `curve ${kind}`, d: "M0 5H26" }));

  function classGroup(number, low, high) {
    const truth = data.truth.filter(([label]) => label === number).map((row) => row.slice(1));
    const ignored = data.ambiguous.map((row) => bar("ambiguous", row, 0, `ambiguous, ${span([0, ...row])}`));
    const bars = truth.map((row) => bar("truth", row, 0, `ground truth, ${span([0, ...row])}`));
    const note = element("small", {});
    const detections = track("detected", LANE, 1);
    const parts = [element("h3", {}, data.classes[number], note)];
    if (data.isAnnotated) parts.push(track("truth", TRUTH, 1, ...ignored, ...bars));
    parts.push(detections);
    if (data.cas[number]) {
      const zero = 1 - (0 - low) / (high - low);
      const curve = line("cas", unpack(data.cas[number]), low, high);
      parts.push(track("T-CAM", CURVE, 1, shape("line", { class: "zero", x1: -1e6, x2: 1e6, y1: zero, y2: zero }), curve));
    }
    const group = element("div", { class: "group" }, ...parts);
    groups.set(number, { group, note, svg: detections.lastChild, isAnnotated: truth.length > 0 });
    return group;
  }

  function tracks() {
    const detected = data.detections.map(([label]) => label), annotated = data.truth.map(([label]) => label);
    const numbers = [...new Set([...detected, ...annotated])]; // by falling score
    const values = Object.values(data.cas).flatMap(unpack).concat(0);
    const low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
    const room = 0.06 * (high - low || 1);
    $("tracks").append(...numbers.map((number) => classGroup(number, low - room, high + room)), attentionGroup());
  }

  /* ---- detections above the threshold ---- */
  function setUpThreshold() {
    const scores = data.detections.map((row) => row[3]);
    if (!scores.length) document.querySelectorAll(".threshold, .list-box").forEach((node) => { node.hidden = true; });
    const high = scores[0] ?? 1, low = scores[scores.length - 1] ?? 0;
    const digits = clamp(Math.ceil(2 - Math.log10(high - low || 1)), 2, 6), unit = 10 ** -digits;
    const floor = (value) => Number((Math.floor(value / unit) * unit).toFixed(digits));
    Object.assign($("threshold"), { min: floor(low), max: floor(high), step: unit });
    const least = high > 0 ? LEAST_SHARE * high : low;
    threshold = floor(Math.max(least, scores[Math.min(SHOWN_AT_FIRST, scores.length) - 1] ?? 0));
    $("threshold").value = threshold;
    $("threshold").addEventListener("input", () => { threshold = Number($("threshold").value); select(); });
  }

  function select() {
    $("threshold-value").textContent = String(threshold).replace("-", "−");
    shown = data.detections.filter((row) => row[3] >= threshold);
    $("count").textContent = `${shown.length} of ${data.total} detections`;
    const top = Math.max(1e-9, shown.length ? shown[0][3] : 0);
    marks = new Map();
    groups.forEach(({ group, note, svg, isAnnotated }, number) => {
      const rows = shown.filter(([label]) => label === number), places = lanes(rows);
      const count = Math.max(1, ...places.map((lane) => lane + 1));
      const bars = rows.map((row, index) => {
        const node = bar("detection", [row[1], row[2]], places[index], `${data.classes[number]}, ${span(row)}, score ${row[3]}`);
        node.style.setProperty("--strength", (0.15 + 0.85 * clamp(row[3] / top, 0, 1)).toFixed(3));
        marks.set(row, [node]);
        return node;
      });
      svg.replaceChildren(...bars);
      svg.setAttribute("height", LANE * count);
      charts.find((chart) => chart[0] === svg)[1] = count;
      note.textContent = rows.length ? `${rows.length} shown, best ${fixed(rows[0][3])}` : "none shown";
      group.hidden = !rows.length && !isAnnotated;
    });
    const items = [...shown].sort((a, b) => a[1] - b[1] || b[3] - a[3]).map((row) => {
      const button = element("button", { type: "button", onclick: () => seek(row[1]) },
        element("b", {}, data.classes[row[0]]), element("span", {}, span(row)), element("span", {}, fixed(row[3])));
      const item = element("li", { "data-start": row[1] }, button);
      marks.get(row).push(item);
      return item;
    });
    $("list").replaceChildren(...items);
    current = null;
    draw();
  }

  /* ---- time ---- */
  function draw() {
    charts.forEach(([svg, units]) => svg.setAttribute("viewBox", `${view[0]} 0 ${view[1] - view[0]} ${units}`));
    const width = view[1] - view[0], most = Math.max(2, Math.floor($("ticks").clientWidth / 64));
    const step = STEPS.find((value) => width / value <= most) ?? 7200, ticks = [];
    for (let at = Math.ceil(view[0] / step - 1e-9) * step; at <= view[1] + 1e-9; at += step) {
      const left = `${(100 * (at - view[0])) / width}%`;
      const place = view[1] - at < width / 20 ? "end" : null; // a label at the right end stays inside
      ticks.push(element("i", { style: { left } }), element("span", { class: place, style: { left } }, stamp(at, step < 1 ? 1 : 0)));
    }
    $("ticks").replaceChildren(...ticks);
    $("ticks").style.setProperty("--height", `${axis.clientHeight - 22}px`);
    follow();
  }

  function setView(start, end) {
    const width = clamp(end - start, Math.min(SHORTEST_VIEW, duration), duration);
    const from = clamp(start, 0, duration - width);
    view = [from, from + width];
    draw();
  }

  function zoom(factor) {
    const half = (factor * (view[1] - view[0])) / 2;
    setView(time() - half, time() + half);
  }

  function seek(to) {
    const at = clamp(to, 0, duration);
    if (playable) player.currentTime = at;
    else virtualTime = at;
    follow();
  }

  /* Return the best shown detection of each class at a time. */
  function detectionsAt(at) {
    const best = new Map();
    shown.forEach((row) => { if (row[1] <= at + 1e-3 && at < row[2] && !best.has(row[0])) best.set(row[0], row); });
    return [...best.values()];
  }

  function follow() {
    const at = time(), width = view[1] - view[0];
    if (at < view[0] - 1e-6 || at > view[1] + 1e-6) return setView(at - 0.1 * width, at + 0.9 * width);
    $("head").style.left = `${(100 * (at - view[0])) / width}%`;
    $("clock").textContent = `${stamp(at)} / ${stamp(duration)}`;
    const rows = detectionsAt(at), found = rows.map((row) => data.detections.indexOf(row)).join();
    axis.setAttribute("aria-valuenow", at.toFixed(2));
    axis.setAttribute("aria-valuetext", [stamp(at), ...rows.map((row) => data.classes[row[0]])].join(", "));
    if (found === current) return undefined;
    current = found;
    marks.forEach(([node, item], row) => {
      node.classList.toggle("current", rows.includes(row));
      if (rows.includes(row)) item.setAttribute("aria-current", "true");
      else item.removeAttribute("aria-current");
    });
    $("now").replaceChildren(...rows.map((row) => element("span", {}, `${data.classes[row[0]]} ${fixed(row[3])}`)));
    if (rows.length) scrollTo(marks.get(rows[0])[1]);
    return undefined;
  }

  function scrollTo(item) { // the list only, not the page
    const box = item.closest(".table-box"), top = item.offsetTop - box.scrollTop;
    if (top < 0 || top + item.offsetHeight > box.clientHeight) box.scrollTop = item.offsetTop - box.clientHeight / 3;
  }

  function step(direction) {
    const starts = [...new Set(shown.map((row) => row[1]))].sort((a, b) => a - b), at = time();
    const margin = playable && !player.paused ? 10 * NEAR : NEAR; // a second press while playing goes further back
    const target = direction > 0 ? starts.find((start) => start > at + NEAR) : starts.reverse().find((start) => start < at - margin);
    if (target !== undefined) seek(target);
  }

  /* ---- player ---- */
  function toggle() {
    if (!playable) return;
    if (player.paused) player.play().catch(() => {});
    else player.pause();
  }

  function stopPlayer() {
    $("unplayable").hidden = false;
    if (player.error) {
      playable = false;
      player.hidden = true;
      $("play").disabled = true;
    }
    follow();
  }

  function readFacts() {
    if (Number.isFinite(player.duration) && player.duration > duration) {
      const isWhole = view[1] === duration;
      duration = player.duration;
      axis.setAttribute("aria-valuemax", duration.toFixed(2));
      if (isWhole) setView(0, duration);
    }
    if (!player.videoWidth) stopPlayer(); // sound alone
  }

  function setUpPlayer() {
    const animate = () => { follow(); if (!player.paused) requestAnimationFrame(animate); };
    const showState = () => {
      $("play").textContent = player.paused ? "▶" : "❚❚";
      $("play").setAttribute("aria-label", player.paused ? "Play" : "Pause");
    };
    player.addEventListener("play", () => { showState(); animate(); });
    player.addEventListener("pause", showState);
    ["timeupdate", "seeking", "seeked"].forEach((name) => player.addEventListener(name, follow));
    player.addEventListener("loadedmetadata", readFacts);
    player.addEventListener("error", stopPlayer);
    $("play").addEventListener("click", toggle);
    if (player.error) stopPlayer();
    else if (player.readyState > 0) readFacts();
  }

  /* ---- mouse, touch and keys ---- */
  function setUpAxis() {
    const move = (event) => {
      const { left, width } = axis.querySelector(".overlay").getBoundingClientRect();
      seek(clamp(view[0] + ((event.clientX - left) / width) * (view[1] - view[0]), ...view));
    };
    let down = [0, 0];
    axis.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      down = [event.clientX, event.clientY];
      axis.setPointerCapture(event.pointerId);
      if (event.pointerType !== "touch") move(event);
    });
    axis.addEventListener("pointermove", (event) => {
      if (!axis.hasPointerCapture(event.pointerId)) return;
      const [across, along] = [Math.abs(event.clientY - down[1]), Math.abs(event.clientX - down[0])];
      if (event.pointerType !== "touch" || along > Math.max(8, across)) move(event); // a finger may scroll the page
    });
    axis.addEventListener("pointerup", (event) => { if (axis.hasPointerCapture(event.pointerId)) move(event); });
    axis.setAttribute("aria-valuemax", duration.toFixed(2));
  }

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const far = event.shiftKey ? 5 : 1;
    const keys = { " ": toggle, ArrowLeft: () => seek(time() - far), ArrowRight: () => seek(time() + far), n: () => step(1), p: () => step(-1),
      Home: () => seek(0), End: () => seek(duration), "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), 0: () => setView(0, duration) };
    const action = keys[event.key.length > 1 ? event.key : event.key.toLowerCase()];
    const isOwn = event.target.closest("button, summary, a") ? event.key === " " : event.target.closest("input") && event.key.length > 1;
    if (!action || isOwn) return;
    event.preventDefault(); // the player's own keys do the same
    event.stopPropagation();
    action();
  }

  tracks();
  setUpThreshold();
  select();
  setUpAxis();
  if (player) setUpPlayer();
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  $("zoom-in").addEventListener("click", () => zoom(0.5));
  $("zoom-out").addEventListener("click", () => zoom(2));
  $("whole").addEventListener("click", () => setView(0, duration));
  document.addEventListener("keydown", onKey, true);
  addEventListener("resize", draw);
})();
