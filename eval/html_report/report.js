/* Charts and the video viewer. Every text from a file goes through textContent, or through plain() before it
   reaches Plotly, which interprets some HTML. */
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const RUN_COLORS = ["#1f5fa6", "#c2410c", "#0f766e", "#7c3aed", "#be185d", "#4d7c0f"];
  const RUN_DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
  const KIND_COLORS = ["#1b7f4d", "#2b6cb0", "#b3261e", "#b7791f", "#7e3fa0", "#6b7280"]; // in the order of data.kinds
  const CLASS_COLORS = ["#0e7490", "#be185d", "#4d7c0f", "#4338ca", "#7c4a12"]; // of the classes in a video; distinct from KIND_COLORS
  const MODALITY_COLORS = ["#c2374b", "#a86500"];
  const FUSED = "#1c2430";
  const AXIS = { gridcolor: "#e8ebf0", zerolinecolor: "#cfd6e0", linecolor: "#aab4c3", fixedrange: true, automargin: true };
  const LAYOUT = {
    font: { family: "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', Arial, sans-serif", size: 12, color: "#1c2430" },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, dragmode: false,
    hoverlabel: { bgcolor: "#ffffff", bordercolor: "#aab4c3", font: { color: "#1c2430" }, align: "left" },
  };
  const CONFIG = { displayModeBar: false, responsive: true, displaylogo: false, doubleClick: false };
  const several = data.runs.length > 1;
  const charts = [];

  const runColor = (index) => RUN_COLORS[index % RUN_COLORS.length];
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const percent = (value) => (value === null || value === undefined ? "–" : (100 * value).toFixed(2));

  function draw(target, traces, layout) {
    if (!charts.includes(target)) charts.push(target);
    return Plotly.react(target, traces, { ...LAYOUT, ...layout }, CONFIG);
  }

  function fill(select, names, chosen = 0) {
    select.replaceChildren(...names.map((name, index) => element("option", { value: index }, name)));
    select.value = String(chosen);
  }

  /* ---- legends ---- */
  function legend(target, entries) {
    const swatch = (color) => element("i", { class: "swatch", style: { "--color": color } });
    target.replaceChildren(...entries.map(([name, color]) => element("span", {}, swatch(color), name)));
  }

  function legends() {
    const runs = several ? data.runs.map((run, index) => [run.name, runColor(index)]) : [];
    document.querySelectorAll(".run-legend").forEach((target) => legend(target, runs));
    document.querySelectorAll(".card").forEach((card) => card.style.setProperty("--color", runColor(+card.dataset.run)));
    document.querySelectorAll(".kind").forEach((kind) => kind.style.setProperty("--color", KIND_COLORS[+kind.dataset.kind]));
    if (!data.isScored) return;
    const kinds = data.kinds.map((kind, index) => [kind, KIND_COLORS[index]]);
    legend($("kind-legend"), kinds);
    legend($("timeline-legend"), kinds);
  }

  /* ---- training ---- */
  function curve(name, part, scale, target) {
    const traces = [];
    data.runs.forEach((run, index) => {
      const points = run.log.filter((point) => point[part][name] !== undefined);
      const values = points.map((point) => (point[part][name] === null ? null : scale * point[part][name])); // null: a gap
      const best = points.map((point) => part === "scores" && point.iteration === run.best);
      traces.push({
        x: points.map((point) => point.iteration), y: values, name: plain(run.name), mode: "lines+markers",
        line: { color: runColor(index), width: 2, dash: RUN_DASHES[index % RUN_DASHES.length] },
        marker: { color: best.map((is) => (is ? "#ffffff" : runColor(index))), size: best.map((is) => (is ? 10 : 4)),
          line: { color: runColor(index), width: best.map((is) => (is ? 2.5 : 0)) } },
        hovertemplate: `%{y:.${scale === 1 ? "4" : "2"}f} at %{x}<extra>${several ? plain(run.name).replace(/%/g, "&#37;") : ""}</extra>`,
      });
    });
    const chart = element("div", { class: "chart", role: "img", "aria-label": `${name} by iteration` });
    target.append(element("figure", {}, element("figcaption", {}, name), chart));
    const nticks = chart.clientWidth < 190 ? 3 : 5;
    draw(chart, traces, {
      height: 190, margin: { l: 38, r: 14, t: 8, b: 30 },
      xaxis: { ...AXIS, nticks, tickangle: 0, rangemode: "tozero" }, yaxis: { ...AXIS, nticks: 5, rangemode: scale === 1 ? "normal" : "tozero" },
    });
  }

  function training() {
    if (!$("score-charts")) return; // a page of detections
    const names = (part) => [...new Set(data.runs.flatMap((run) => run.log.flatMap((point) => Object.keys(point[part]))))];
    names("scores").forEach((name) => curve(name, "scores", 100, $("score-charts")));
    const losses = names("losses");
    losses.sort((a, b) => (b === "total") - (a === "total"));
    losses.forEach((name) => curve(name, "losses", 1, $("loss-charts")));
    if (!losses.length) $("loss-charts").append("log.jsonl has no records.");
  }

  /* ---- classes ---- */
  function classScores(run, checkpoint, protocol, threshold) {
    const scores = (run.checkpoints[checkpoint] || {})[protocol];
    if (!scores) return {};
    const mean = (column) => scores.ap.reduce((sum, row) => sum + row[column], 0) / scores.ap.length;
    const value = (column) => (threshold >= 0 ? scores.ap[threshold][column] : scores.ap.some((row) => row[column] === null) ? null : mean(column));
    return Object.fromEntries(scores.classes.map((name, column) => [name, value(column)]));
  }

  function classes() {
    if (!data.isScored) return;
    const protocols = data.runs[0].protocols;
    const checkpoints = [...new Set(data.runs.flatMap((run) => Object.keys(run.checkpoints)))];
    const thresholds = data.runs[0].checkpoints[Object.keys(data.runs[0].checkpoints)[0]][protocols[0]].tiou_thresholds;
    fill($("class-protocol"), protocols);
    fill($("class-checkpoint"), checkpoints, Math.max(0, checkpoints.indexOf("last")));
    $("class-threshold").append(element("option", { value: -1 }, "mean of all"));
    thresholds.forEach((value, index) => $("class-threshold").append(element("option", { value: index }, value)));
    $("class-threshold").value = String(thresholds.indexOf(data.verdictTiou));
    const update = () => drawClasses(checkpoints[$("class-checkpoint").value], protocols[$("class-protocol").value], +$("class-threshold").value);
    ["class-protocol", "class-checkpoint", "class-threshold"].forEach((id) => $(id).addEventListener("change", update));
    update();
  }

  function drawClasses(checkpoint, protocol, threshold) {
    const columns = data.runs.map((run) => classScores(run, checkpoint, protocol, threshold));
    const known = data.classes.filter((name) => columns.some((column) => typeof column[name] === "number"));
    const names = known.sort((a, b) => (columns[0][b] ?? -1) - (columns[0][a] ?? -1));
    const bar = several ? Math.max(9, 18 - 2 * data.runs.length) : 16;
    const traces = data.runs.map((run, index) => ({
      type: "bar", orientation: "h", y: names.map((_, row) => row), x: names.map((name) => 100 * columns[index][name]),
      name: plain(run.name), marker: { color: runColor(index) }, text: names.map((name) => percent(columns[index][name])), textposition: "outside",
      cliponaxis: false, textfont: { size: 11 }, hovertext: names.map((name) => `${plain(name)}<br>${plain(run.name)}: ${percent(columns[index][name])}`), hoverinfo: "text",
    }));
    draw($("class-chart"), traces, {
      height: 60 + names.length * (bar * data.runs.length + 10), margin: { l: 10, r: 44, t: 4, b: 40 }, bargap: 0.28, bargroupgap: 0.05,
      xaxis: { ...AXIS, range: [0, 100], title: { text: "AP in percent" } },
      yaxis: { ...AXIS, range: [names.length - 0.4, -0.6], tickvals: names.map((_, row) => row), ticktext: names.map(plain), showgrid: false, zeroline: false },
    });
    const head = element("tr", {}, element("th", { scope: "col" }, "class"), ...data.runs.map((run) => element("th", { scope: "col", class: "number" }, several ? run.name : "AP")));
    const rows = names.map((name) => element("tr", {}, element("th", { scope: "row" }, name),
      ...columns.map((column) => element("td", { class: "number", title: column[name] ?? "" }, percent(column[name])))));
    $("class-table").replaceChildren(element("thead", {}, head), element("tbody", {}, ...rows));
  }

  /* ---- diagnosis ---- */
  function profiles() {
    if (!data.isScored) return;
    data.runs.forEach((run) => {
      const diagnosis = run.diagnosis;
      const slices = diagnosis.profile[diagnosis.tiou_thresholds.indexOf(data.verdictTiou)];
      const totals = slices.map((slice) => slice.reduce((sum, count) => sum + count, 0));
      const names = slices.map((_, index) => `${index + 1}G`);
      const traces = data.kinds.map((kind, index) => ({
        type: "bar", x: names, y: slices.map((slice, row) => (100 * slice[index]) / Math.max(1, totals[row])), marker: { color: KIND_COLORS[index] },
        hovertext: slices.map((slice) => `${plain(kind)}: ${slice[index]}`), hoverinfo: "text",
      }));
      const chart = element("div", { class: "chart", role: "img", "aria-label": `Error types of the detections of ${run.name} by rank` });
      $("profile-charts").append(element("figure", {}, element("figcaption", {}, several ? run.name : "Percent of the detections per slice of the ranked list"), chart));
      draw(chart, traces, { height: 260, barmode: "stack", bargap: 0.15, margin: { l: 38, r: 10, t: 8, b: 30 }, xaxis: { ...AXIS, type: "category" }, yaxis: { ...AXIS, range: [0, 100] } });
    });
  }

  /* ---- viewer ---- */
  const state = { video: 0, chosen: new Set(), range: [0, 1], list: { run: 0, column: "position", falling: false } };
  const order = data.videos.map((_, index) => index); // of the sorted list

  const annotated = (video) => [...new Set(video.truth.map((row) => row[0]))].sort((a, b) => a - b);
  const present = (video) => [...new Set([...annotated(video), ...video.runs.flatMap((run) => (run ? run.detections.map((row) => row[0]) : [])), ...video.runs.flatMap((run) => (run ? Object.keys(run.cas).map(Number) : []))])];

  const kindColor = (row) => (row[4] === null ? classColor(row[0]) : KIND_COLORS[row[4]]); // the class without ground truth
  const classColor = (number) => CLASS_COLORS[present(data.videos[state.video]).indexOf(number) % CLASS_COLORS.length];

  function show(index, focusList = false) {
    state.video = index;
    const video = data.videos[index];
    const first = annotated(video).length ? annotated(video) : present(video).slice(0, 1);
    state.chosen = new Set(first);
    state.range = [0, video.duration];
    $("video").value = String(index);
    const score = (answer) => (data.isScored ? `AP ${answer ? percent(answer.ap) : "–"}` : `${answer ? answer.total : 0} detections`);
    $("video-summary").replaceChildren(element("strong", {}, video.id), ` · ${seconds(video.duration)} s · `, data.isScored ? `${video.truth.length} segments · ` : "",
      ...(data.players[video.id] ? [element("a", { href: data.players[video.id] }, "player"), " · "] : []),
      ...data.runs.flatMap((run, place) => [place ? " · " : "", `${several ? run.name + ": " : ""}${score(video.runs[place])}`]));
    const boxes = present(video).map((number) => {
      const box = element("input", { type: "checkbox", value: number, onchange: chooseClass });
      box.checked = state.chosen.has(number);
      const note = !data.isScored || annotated(video).includes(number) ? "" : " (not annotated)";
      return element("label", { style: { "--color": classColor(number) } }, box, data.classes[number] + note);
    });
    $("class-choice").replaceChildren(element("legend", {}, "Classes"), ...boxes);
    markRow(focusList);
    timeline();
  }

  function chooseClass(event) {
    const number = +event.target.value;
    if (event.target.checked) state.chosen.add(number);
    else state.chosen.delete(number);
    timeline();
  }

  function rgba(color, alpha) {
    const part = (from) => parseInt(color.slice(from, from + 2), 16);
    return `rgba(${part(1)},${part(3)},${part(5)},${alpha.toFixed(3)})`;
  }

  const bars = (rows, levels, colors, lines, texts) => ({
    type: "bar", orientation: "h", base: rows.map((row) => row[0]), x: rows.map((row) => row[1] - row[0]), y: levels, width: 0.82,
    marker: { color: colors, line: { color: lines, width: 1 } }, hovertext: texts, hoverinfo: "text",
  });

  /* A track: title, height in pixels, range of its own axis, traces without axes. */
  function truthTracks(video) {
    if (!data.isScored) return [];
    return [...state.chosen].map((number) => {
      const rows = video.truth.filter((row) => row[0] === number).map((row) => row.slice(1));
      const ignored = video.ambiguous;
      const text = (what) => ([start, end]) => `${what}<br>${seconds(start)}–${seconds(end)} s`;
      const traces = [bars(rows, rows.map(() => 0), rows.map(() => classColor(number)), rows.map(() => classColor(number)), rows.map(text(plain(data.classes[number]))))];
      if (ignored.length) traces.push(bars(ignored, ignored.map(() => 0), ignored.map(() => "rgba(120,128,140,.25)"), ignored.map(() => "#8a93a1"), ignored.map(text("ambiguous"))));
      return { title: `Ground truth · <b>${plain(data.classes[number])}</b>`, height: 20, range: [0.5, -0.5], bare: true, traces };
    });
  }

  const shownDetections = (run, number) => run.detections.filter((row) => row[0] === number).slice(0, +$("top").value);

  function detectionTrack(run, number, name) {
    const rows = shownDetections(run, number);
    const levels = lanes(rows);
    const count = Math.max(1, ...levels.map((lane) => lane + 1));
    const top = Math.max(1e-9, ...rows.map((row) => row[3]));
    const strength = (row) => 0.12 + 0.88 * Math.min(1, Math.max(0, row[3] / top));
    const text = ([label, start, end, score, kind], place) => `${place + 1}. ${plain(data.classes[label])}<br>${seconds(start)}–${seconds(end)} s, score ${score}${kind === null ? "" : `<br>${plain(data.kinds[kind])}`}`;
    const traces = [bars(rows.map((row) => [row[1], row[2]]), levels, rows.map((row) => rgba(kindColor(row), strength(row))), rows.map(kindColor), rows.map(text))];
    const none = rows.length ? "" : " · none";
    return { title: `${name}Detections · <b>${plain(data.classes[number])}</b>${none}`, height: Math.max(14, 12 * count), range: [count - 0.5, -0.5], bare: true, traces };
  }

  function line(times, values, color, name, width = 1.2) {
    return { x: times, y: values, mode: "lines", line: { color: color, width }, hovertext: values.map((value, index) => `${name} ${value.toFixed(3)}<br>${seconds(times[index])} s`), hoverinfo: "text" };
  }

  function runTracks(run, place) {
    const name = several ? `<span style="color:${runColor(place)}"><b>${plain(data.runs[place].name)}</b></span> · ` : "";
    if (!run) return [{ title: `${name}no outputs for this video`, height: 8, range: [0, 1], bare: true, traces: [] }];
    if (!run.attention) return [...state.chosen].map((number) => detectionTrack(run, number, name)); // a detection file alone
    const times = Array.from({ length: run.snippets }, (_, index) => Number(((index + 0.5) / run.rate).toFixed(3)));
    const perModality = run.attention.length > 1;  // the audio-visual network has a single attention
    const colors = perModality ? [...MODALITY_COLORS, FUSED] : [FUSED];
    const labels = perModality ? [...data.runs[place].modalities.map(plain), "fused"] : ["foreground"];
    const attention = run.attention.map((packed, index) => line(times, unpack(packed), colors[index], labels[index], index === labels.length - 1 ? 2 : 1.1));
    const key = labels.map((label, index) => `<span style="color:${colors[index]}"><b>${label}</b></span>`).join(" · ");
    const drawn = [...state.chosen].filter((number) => run.cas[number]);
    const cas = drawn.map((number) => line(times, unpack(run.cas[number]), classColor(number), plain(data.classes[number]), 1.5));
    const casKey = drawn.map((number) => `<span style="color:${classColor(number)}"><b>${plain(data.classes[number])}</b></span>`).join(" · ");
    const values = cas.flatMap((trace) => trace.y).concat(0);
    const low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
    const room = 0.06 * (high - low || 1);
    return [
      ...[...state.chosen].map((number) => detectionTrack(run, number, name)),
      { title: `${name}Attention · ${key}`, height: 92, range: [-0.03, 1.03], ticks: [0, 0.5, 1], traces: attention },
      { title: `${name}T-CAM · ${casKey}`, height: 92, range: [low - room, high + room], traces: cas },
    ];
  }

  function timeline() {
    const video = data.videos[state.video];
    const tracks = [...truthTracks(video), ...video.runs.flatMap(runTracks)];
    const TITLE = 22, GAP = 5, BOTTOM = 44;
    const total = tracks.reduce((sum, track) => sum + track.height + TITLE + GAP, 0);
    const layout = {
      height: total + BOTTOM, margin: { l: 40, r: 12, t: 0, b: BOTTOM }, barmode: "overlay", hovermode: "closest",
      dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", annotations: [],
      xaxis: { ...AXIS, fixedrange: false, automargin: false, range: [...state.range], minallowed: 0, maxallowed: video.duration, title: { text: "seconds" }, anchor: "free", position: 0,
        showspikes: true, spikemode: "across", spikesnap: "cursor", spikethickness: 1, spikecolor: "#6b7280", spikedash: "dot", zeroline: false },
    };
    const traces = [];
    let y = total;
    tracks.forEach((track, index) => {
      const suffix = index ? index + 1 : "";
      y -= TITLE;
      layout.annotations.push({ text: track.title, x: 0, xref: "paper", xanchor: "left", y: y / total, yref: "paper", yanchor: "bottom", showarrow: false, font: { size: 12, color: "#3b4554" }, align: "left" });
      layout[`yaxis${suffix}`] = { ...AXIS, automargin: false, domain: [Math.max(0, (y - track.height) / total), y / total], range: track.range, zeroline: !track.bare, showline: !track.bare, showticklabels: !track.bare, showgrid: !track.bare,
        nticks: 4, tickvals: track.ticks || null, tickfont: { size: 10 }, anchor: "x" };
      // Plotly does not draw an axis without a trace: the empty trace keeps the track and its grid.
      [...track.traces, { x: [null], y: [null], mode: "lines", hoverinfo: "skip" }].forEach((trace) => traces.push({ ...trace, xaxis: "x", yaxis: `y${suffix}` }));
      y -= track.height + GAP;
    });
    $("timeline").setAttribute("aria-label", `Time axis of ${video.id}: ground truth, detections, attention, T-CAM`);
    $("timeline").dataset.video = video.id;
    draw($("timeline"), traces, layout);
    detectionTable(video);
  }

  function detectionTable(video) {
    const heads = [...(several ? ["run"] : []), "class", "rank", "start, s", "end, s", "score", ...(data.isScored ? ["type"] : [])];
    const rows = video.runs.flatMap((run, place) => (run ? [...state.chosen].flatMap((number) => shownDetections(run, number).map((row, rank) => [
      ...(several ? [data.runs[place].name] : []), data.classes[number], rank + 1, seconds(row[1]), seconds(row[2]), row[3], ...(data.isScored ? [data.kinds[row[4]]] : [])])) : []));
    $("detection-table").replaceChildren(element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head)))),
      element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map((cell) => element("td", {}, cell))))));
  }

  function setRange(start, end) {
    const duration = data.videos[state.video].duration;
    const width = Math.min(duration, Math.max(end - start, Math.min(1, duration)));
    const from = Math.min(Math.max(0, start), duration - width);
    state.range = [from, from + width];
    Plotly.relayout($("timeline"), { "xaxis.range": [...state.range] });
  }
  const zoom = (factor) => {
    const [start, end] = state.range, middle = (start + end) / 2, half = ((end - start) * factor) / 2;
    setRange(middle - half, middle + half);
  };
  const move = (share) => setRange(state.range[0] + share * (state.range[1] - state.range[0]), state.range[1] + share * (state.range[1] - state.range[0]));
  const whole = () => setRange(0, data.videos[state.video].duration);
  const step = (by) => show(order[(order.indexOf(state.video) + by + order.length) % order.length], true);

  /* ---- list of videos ---- */
  const answer = (index) => data.videos[index].runs[state.list.run];
  const best = (index) => (answer(index) && answer(index).detections.length ? answer(index).detections[0] : null);
  const columns = !data.isScored ? [
    { key: "position", head: "video", rising: true, value: (index) => index },
    { key: "duration", head: "seconds", value: (index) => data.videos[index].duration },
    { key: "class", head: "best class", rising: true, value: (index) => (best(index) ? data.classes[best(index)[0]] : "–") },
    { key: "score", head: "its score", value: (index) => (best(index) ? best(index)[3] : null) },
    { key: "total", head: "detections", value: (index) => (answer(index) ? answer(index).total : null) },
  ] : [
    { key: "position", head: "video", rising: true, value: (index) => index },
    { key: "classes", head: "classes", rising: true, value: (index) => annotated(data.videos[index]).map((number) => data.classes[number]).join(", ") },
    { key: "segments", head: "segments", value: (index) => data.videos[index].truth.length },
    ...data.runs.map((run, place) => ({ key: `ap${place}`, head: several ? `AP ${run.name}` : "AP", ap: true, value: (index) => (data.videos[index].runs[place] ? data.videos[index].runs[place].ap : null) })),
    { key: "missed", head: "missed", value: (index) => (answer(index) ? answer(index).missed : null) },
    ...data.kinds.map((kind, number) => ({ key: `kind${number}`, head: kind, color: KIND_COLORS[number], value: (index) => (answer(index) ? answer(index).counts[number] : null) })),
  ];

  function sortBy(column) {
    const { list } = state;
    list.falling = list.column === column.key ? !list.falling : !column.rising;
    list.column = column.key;
    drawList();
    $("video-table").querySelector(`button[data-column="${column.key}"]`).focus();
  }

  function drawList() {
    const column = columns.find(({ key }) => key === state.list.column);
    const sign = state.list.falling ? -1 : 1;
    const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b) : a - b);
    order.sort((a, b) => {
      const [x, y] = [column.value(a), column.value(b)];
      if (x === null || y === null) return (x === null) - (y === null) || a - b;
      return sign * compare(x, y) || a - b;
    });
    const head = columns.map((each) => element("th", { scope: "col", class: each.rising ? "" : "number", "aria-sort": each === column ? (state.list.falling ? "descending" : "ascending") : "none" },
      element("button", { type: "button", "data-column": each.key, onclick: () => sortBy(each) }, each.head)));
    const rows = order.map((index) => element("tr", { "data-video": index, onclick: () => show(index) },
      ...columns.map((each) => {
        const value = each.value(index);
        if (each.key === "position") return element("td", {}, element("button", { type: "button" }, data.videos[index].id));
        const text = each.ap ? percent(value) : value ?? "–";
        return element("td", { class: each.rising ? "" : "number" }, text);
      })));
    $("video-table").replaceChildren(element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
    markRow(false);
  }

  function markRow(scroll) {
    $("video-table").querySelectorAll("tr[aria-current]").forEach((row) => row.removeAttribute("aria-current"));
    const row = $("video-table").querySelector(`tr[data-video="${state.video}"]`);
    if (!row) return;
    row.setAttribute("aria-current", "true");
    const box = row.closest(".table-box");
    if (scroll) box.scrollTop = Math.max(0, row.offsetTop - box.clientHeight / 2); // scroll the list only, not the page
  }

  function inView(node) {
    const { top, bottom } = node.getBoundingClientRect();
    return bottom > 0 && top < innerHeight;
  }

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea") || !inView($("videos"))) return;
    const keys = { "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), "−": () => zoom(2), 0: whole,
      ArrowLeft: () => (event.shiftKey ? move(-0.4) : step(-1)), ArrowRight: () => (event.shiftKey ? move(0.4) : step(1)) };
    const scrolls = event.target.matches(".table-box") && event.key.startsWith("Arrow"); // arrow keys scroll the focused table
    if (!keys[event.key] || scrolls) return;
    event.preventDefault();
    keys[event.key]();
  }

  function viewer() {
    if (!data.videos.length) return;
    fill($("video"), data.videos.map((video) => video.id));
    $("video").addEventListener("change", () => show(+$("video").value));
    $("top").addEventListener("change", timeline);
    const actions = { previous: () => step(-1), next: () => step(1), "zoom-in": () => zoom(0.5), "zoom-out": () => zoom(2), earlier: () => move(-0.4), later: () => move(0.4), whole };
    Object.entries(actions).forEach(([id, action]) => $(id).addEventListener("click", action));
    document.addEventListener("keydown", onKey);
    if (several) {
      fill($("list-run"), data.runs.map((run) => run.name));
      $("list-run").addEventListener("change", () => { state.list.run = +$("list-run").value; drawList(); });
    }
    drawList();
    show(0);
    $("timeline").on("plotly_doubleclick", whole); // Plotly itself would return to the range of the first video
    $("timeline").on("plotly_relayout", (change) => {
      const { range } = $("timeline").layout.xaxis;
      if (Object.keys(change).some((key) => key.startsWith("xaxis"))) state.range = [...range];
    });
  }

  /* Paper is narrower than most windows: resize every chart for printing, and back afterwards. */
  addEventListener("beforeprint", () => charts.forEach((chart) => Plotly.relayout(chart, { width: chart.closest(".wide") ? 330 : chart.closest(".grid") ? 210 : 680 })));
  addEventListener("afterprint", () => charts.forEach((chart) => Plotly.relayout(chart, { width: null, autosize: true })));

  legends();
  training();
  classes();
  profiles();
  viewer();
})();
