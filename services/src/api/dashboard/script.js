
"use strict";
// Whatever a device, a disk or the network had a say in goes to the page as text, never as markup.
const $ = (id) => document.getElementById(id);
const SHOWN = 120; // seconds of a plot
const ROWS = 16; // of the picture of memory
const OWNERS = [ // name of a run, what it is, and names in the books
  ["free", "Free", ["free"]],
  ["used", "In use: heap, stacks, page cache", ["private", "allocated", "unmapped"]],
  ["kernel", "Kernel image and bitmaps", ["kernel"]],
  ["tables", "Page tables", ["tables"]],
  ["reserved", "Firmware", ["reserved"]],
  ["dma", "Windows of devices", ["dma"]],
  ["dma_idle", "Kept for devices, idle", ["dma_idle"]],
  ["quarantined", "In quarantine: no driver, not yet reset", ["quarantined"]],
];

const digits = (n) => n.toLocaleString("en", { maximumFractionDigits: n < 10 ? 2 : n < 100 ? 1 : 0 });
const count = (n) => n.toLocaleString("en");
const kib = (n) => `${count(Math.round(n / 1024))} KiB`;
const rate = (n) => `${digits(n)}/s`;
const ms = (n) => n < 1000 ? `${digits(n)} ms` : `${digits(n / 1000)} s`;
function size(n) {
  let unit = 0;
  for (n /= 1024; n >= 1000 && unit < 2; unit++) n /= 1024;
  return `${digits(n)} ${["KiB", "MiB", "GiB"][unit]}`;
}
const speed = (n) => `${size(n)}/s`;
function time(s) {
  const [h, m] = [Math.floor(s / 3600), Math.floor(s / 60) % 60];
  return `${h ? `${h} h ` : ""}${h || m ? `${m} min ` : ""}${Math.floor(s) % 60} s`;
}

function put(node, text, kind = "") {
  if (node.textContent !== text) node.textContent = text;
  if (node.className !== kind) node.className = kind;
}
function add(parent, name, attributes = {}, text = "") {
  const node = document.createElementNS(name === "svg" || parent.namespaceURI.endsWith("svg")
    ? SVG : parent.namespaceURI, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.textContent = text;
  return parent.appendChild(node);
}
const SVG = $("icon").namespaceURI;

/** Fills a table. A cell is text, or an object: text, small, share of a bar, swatch, bad. */
function fill(id, rows) {
  const body = $(id), labels = body.parentElement.tHead.rows[0].cells;
  while (body.rows.length > rows.length) body.deleteRow(-1);
  rows.forEach((cells, y) => {
    const row = body.rows[y] ?? body.insertRow();
    cells.forEach((cell, x) => {
      const { text, small, share, swatch, bad } = cell.text === undefined ? { text: cell } : cell;
      let place = row.cells[x];
      if (!place) {
        place = add(row, x ? "td" : "th", x ? { "data-label": labels[x].textContent } : { scope: "row" });
        if (swatch) add(place, "span", { class: `swatch ${swatch}` });
        add(place, "span");
        if (small !== undefined) add(place, "small");
        if (share !== undefined) add(add(place, "div", { class: "bar" }), "i");
      }
      put(place.querySelector("span:not(.swatch)"), text, bad ? "bad" : "");
      if (small !== undefined) put(place.querySelector("small"), small);
      if (share !== undefined) place.querySelector("i").style.width = `${100 * Math.min(share, 1)}%`;
    });
  });
}

/** The least round number that is not less. */
function decimal(n) {
  const power = 10 ** Math.floor(Math.log10(n));
  return [1, 2, 5, 10].find((step) => step * power >= n) * power;
}
const binary = (n) => 2 ** Math.ceil(Math.log2(n));

/** A plot: its lines' names, how a value is written, and which numbers are round. */
class Plot {
  constructor(id, lines, write, round = decimal) {
    Object.assign(this, { figure: $(id), write, round, points: [] });
    this.top = add(add(this.figure, "div", { class: "axis" }), "span", {}, write(0));
    this.svg = add(this.figure, "svg", { viewBox: "0 0 1000 100", preserveAspectRatio: "none", role: "img" });
    const below = add(this.figure, "div", { class: "axis" });
    add(below, "span", {}, "2 minutes ago");
    add(below, "span", {}, "now");
    const legend = add(this.figure, "p", { class: "legend" });
    this.lines = lines.map((name, at) => {
      const item = add(legend, "span");
      const mark = add(item, "svg", { viewBox: "0 0 28 8", "aria-hidden": "true" });
      add(mark, "path", { class: `line-${at}`, d: "M0 4H28" });
      add(item, "span", {}, ` ${name} `);
      return { name, value: add(item, "b", {}, "–"), path: add(this.svg, "path", { class: `line-${at}` }) };
    });
  }
  /** Adds values, or a gap where there are none. */
  add(now, values) {
    this.points.push([now, values]);
    while (this.points[0][0] < now - SHOWN) this.points.shift();
    const known = this.points.flatMap(([, values]) => values ?? []).filter(Number.isFinite);
    const top = this.round(Math.max(...known, 1e-9));
    put(this.top, known.length ? this.write(top) : "");
    this.lines.forEach((line, at) => {
      let d = "", draws = false;
      for (const [when, values] of this.points) {
        const value = values?.[at];
        if (Number.isFinite(value)) {
          const [x, y] = [1000 * (1 - (now - when) / SHOWN), 98 - 96 * value / top];
          d += `${draws ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
        }
        draws = Number.isFinite(value);
      }
      line.path.setAttribute("d", d);
      put(line.value, Number.isFinite(values?.[at]) ? this.write(values[at]) : "–");
    });
    const said = this.lines.map(({ name, value }) => `${name} ${value.textContent}`).join(", ");
    const most = known.length ? this.write(Math.max(...known)) : "–";
    this.svg.setAttribute("aria-label", `Now: ${said}. At most ${most}.`);
  }
}
const plots = {
  throughput: new Plot("plot-throughput", ["Sent", "Received"], speed, binary),
  requests: new Plot("plot-requests", ["Answers", "Errors (4xx, 5xx)"], rate),
  latency: new Plot("plot-latency", ["First byte, median", "First byte, 95 %", "Last byte, 95 %"], ms),
  connections: new Plot("plot-connections", ["Open", "Waiting for a task"], count),
};

/** What /metrics told at one time. */
class Sample {
  constructor(text) {
    this.now = performance.now() / 1000;
    this.all = [...text.matchAll(/^ringfence_(.+) (\S+)$/gm)].map(([, name, value]) => [name, Number(value)]);
  }
  /** The sum of all whose name, with labels, begins so. */
  of(start) {
    return this.all.reduce((sum, [name, value]) => name.startsWith(start) ? sum + value : sum, 0);
  }
  /** The buckets of a histogram: upper bound, and how many did not exceed it. */
  buckets(name) {
    return this.all.filter(([key]) => key.startsWith(`${name}_bucket`))
      .map(([key, value]) => [Number(key.split('"')[1].replace("+Inf", "Infinity")), value]);
  }
}
/** Milliseconds that a part of what was counted between two samples did not exceed; nothing if none was. */
function quantile(then, now, name, part) {
  const old = then.buckets(name);
  const buckets = now.buckets(name).map(([bound, count], at) => [bound, count - (old[at]?.[1] ?? 0)]);
  const wanted = part * (buckets.at(-1)?.[1] ?? 0), at = buckets.findIndex(([, count]) => count >= wanted);
  if (!(wanted > 0)) return undefined;
  const [[from, below], [to, count]] = [buckets[at - 1] ?? [0, 0], buckets[at]];
  return 1000 * (to === Infinity ? from : from + (to - from) * (wanted - below) / (count - below));
}
const ANSWERS = "http_requests_total", WRONG = `${ANSWERS}{code="4`, FAILED = `${ANSWERS}{code="5`;

let history = []; // samples of the last ten seconds
let devices = [], memory = null;

function show(sample) {
  // A server that was started anew counts anew.
  if (history.at(-1)?.of("http_connections_total") > sample.of("http_connections_total")) history = [];
  const [then, before] = [history[0], history.at(-1)];
  const grew = (name) => before && Math.max(0, sample.of(name) - before.of(name)) / (sample.now - before.now);
  const total = (name) => count(sample.of(name)), each = (name) => before ? rate(grew(name)) : "–";
  const [first, most, last] = [["first_byte", 0.5], ["first_byte", 0.95], ["request_duration", 0.95]]
    .map(([name, part]) => then && quantile(then, sample, `http_${name}_seconds`, part));
  const sent = grew("http_sent_bytes_total"), received = grew("http_received_bytes_total");
  const requests = grew(ANSWERS), errors = before && grew(WRONG) + grew(FAILED);
  history.push(sample);
  while (history[0].now < sample.now - 10) history.shift();

  put($("uptime"), time(sample.of("uptime_seconds")));
  put($("tile-requests"), each(ANSWERS));
  put($("tile-sent"), before ? speed(sent) : "–");
  put($("tile-received"), before ? speed(received) : "–");
  put($("tile-latency"), first === undefined ? "–" : ms(first));
  put($("tile-connections"), total("http_connections_active"));
  put($("tile-free"), size(4096 * sample.of('frames{owner="free"}')));
  plots.throughput.add(sample.now, before && [sent, received]);
  plots.requests.add(sample.now, before && [requests, errors]);
  plots.latency.add(sample.now, [first, most, last]);
  plots.connections.add(sample.now, [sample.of("http_connections_active"), sample.of("tcp_waiting")]);

  fill("connections", [
    ["Open now", total("http_connections_active")],
    ["Waiting for a task now", total("tcp_waiting")],
    ["Ended, remembered for a while (TIME-WAIT)", total("tcp_time_wait")],
    ["Served since start", total("http_connections_total")],
    ["Answers since start", total(ANSWERS)],
    ["Sent since start", kib(sample.of("http_sent_bytes_total"))],
  ]);
  const away = (why, name) => [why, total(name), each(name)];
  fill("refusals", [
    away("No room for another connection: comes again", "tcp_turned_away_total"),
    away("Ended: slowest while others came", "tcp_gave_way_total"),
    away("Reset: of no connection that is here", "tcp_refused_total"),
    away("Asked to leave after an answer: others waited", "http_made_room_total"),
    away("Cut off: slow while others waited", "http_gave_way_total"),
    away("408: the request did not arrive in time", 'http_requests_total{code="408"}'),
    away("503: no memory, or no disk", 'http_requests_total{code="503"}'),
    away("4xx: all that clients did wrong", WRONG),
    away("5xx: all that went wrong here", FAILED),
  ]);
  fill("queues", devices.flatMap((device) => device.queues.map(({ index, size }) => {
    const key = (name) => `queue_${name}{device=${JSON.stringify(device.address)},queue="${index}"}`;
    const held = sample.of(key("in_flight"));
    const both = (name) => ({ text: each(key(name)), small: total(key(name)) });
    const errors = (name) => ({ text: total(key(name)), bad: sample.of(key(name)) > 0 });
    return [{ text: device.address, small: device.name }, `${index}: ${use(device.driver, index)}`,
      { text: `${held} of ${size}`, share: held / size }, both("kicks_total"), both("interrupts_total"),
      both("completions_total"), errors("rejected_total"), errors("given_up_total")];
  })));
}
const use = (driver, index) => driver !== "virtio-net" ? "requests" : index % 2 ? "transmit" : "receive";

function showDevices() {
  fill("devices", devices.map(({ address, id, name, driver, features }) =>
    [{ text: address, small: id }, name, driver ?? "none", features.join(" ") || "–"]));
}

function showMemory() {
  const { frames, heap, runs, windows, audit } = memory;
  const booked = OWNERS.map(([, , names]) => names.reduce((sum, name) => sum + (frames[name] ?? 0), 0));
  const all = Object.values(frames).reduce((sum, count) => sum + count, 0);
  const room = (frames) => kib(4096 * frames), share = (frames) => `${digits(100 * frames / all)} %`;
  fill("owners", [
    ...OWNERS.map(([name, what], at) => [{ text: what, swatch: name }, room(booked[at]), share(booked[at])]),
    [{ text: "All RAM", swatch: "all" }, room(all), share(all)],
  ]);
  const own = new Map();
  for (const { device, bytes } of windows) {
    const [count, sum] = own.get(device) ?? [0, 0];
    own.set(device, [count + 1, sum + bytes]);
  }
  fill("windows", [...own].map(([device, [windows, bytes]]) => [device, count(windows), kib(bytes)]));
  put($("heap"), `${kib(heap.used)} of ${kib(heap.size)} in use`);
  put($("audit"), audit.ok ? "clean, just now" : audit.findings.join("; "), audit.ok ? "" : "bad");
  draw(runs, windows, all);
}

/** RAM in rows, without the gaps between its runs. */
function draw(runs, windows, all) {
  const row = Math.ceil(all / ROWS), scale = 1000 / row, place = $("map");
  const svg = document.createElementNS(SVG, "svg");
  Object.entries({ viewBox: `0 0 1000 ${16 * ROWS}`, preserveAspectRatio: "none", role: "img" })
    .forEach(([key, value]) => svg.setAttribute(key, value));
  const starts = [];
  /** Calls `each` with the row, the place in it, and the length of each part of some frames. */
  const parts = (at, count, each) => {
    for (let left = count; left > 0;) {
      const y = Math.floor(at / row), some = Math.min(left, (y + 1) * row - at);
      each(y, at - y * row, some);
      [at, left] = [at + some, left - some];
    }
  };
  const places = []; // where each run is in RAM without gaps
  let at = 0;
  for (const [start, count, owner] of runs) {
    const known = OWNERS.some(([name]) => name === owner) ? owner : "used";
    parts(at, count, (y, x, some) => {
      starts[y] ??= start + y * row + x - at;
      add(svg, "rect", { class: known, x: x * scale, y: 16 * y, width: some * scale, height: 15 });
    });
    places.push([start, count, at]);
    at += count;
  }
  for (const { device, start, bytes } of windows) {
    const frame = start / 4096;
    const run = places.find(([start, count]) => start <= frame && frame < start + count);
    if (!run) continue;
    parts(run[2] + frame - run[0], Math.ceil(bytes / 4096), (y, x, some) => {
      const line = add(svg, "path", { class: "window", d: `M${x * scale} ${16 * y + 7.5}h${some * scale}` });
      add(line, "title", {}, `${device}: ${kib(bytes)} from 0x${start.toString(16)}`);
    });
  }
  svg.setAttribute("aria-label", "Physical memory by owner; the table below has the sizes");
  place.replaceChildren(svg);
  put($("addresses"), starts.map((frame) => `0x${(4096 * frame).toString(16).padStart(8, "0")}`).join("\n"));
}

async function get(path) {
  const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(5000) });
  if (!answer.ok) throw new Error(`it answers ${answer.status}`);
  return answer.text();
}

let turn = 0, failures = 0, since = null, timer = 0, asking = false;

/** One round: asks for what is due, one thing at a time, and says when to come again. */
async function ask() {
  try {
    const sample = new Sample(await get("/metrics"));
    if (turn % 10 === 0) devices = JSON.parse(await get("/api/devices"));
    if (turn % 5 === 0) memory = JSON.parse(await get("/api/memory"));
    return { sample };
  } catch (error) {
    failures++;
    since ??= new Date();
    const wait = Math.min(2 ** failures, 16);
    const why = error.message.startsWith("it answers") ? ` (${error.message})` : "";
    const clock = since.toLocaleTimeString("en", { hour12: false });
    put($("state"), `not reachable since ${clock}${why}; asking again every ${wait} s`, "lost");
    return { wait };
  }
}
async function round() {
  asking = true;
  const { sample, wait = 1 } = await ask();
  asking = false;
  if (sample) {
    if (turn % 10 === 0) showDevices();
    if (turn % 5 === 0) showMemory();
    show(sample);
    [turn, failures, since] = [turn + 1, 0, null];
    put($("state"), "live");
  } else {
    turn = 0; // and all of it when it is there again
    Object.values(plots).forEach((plot) => plot.add(performance.now() / 1000, null));
  }
  rest(wait);
}
function rest(seconds) {
  clearTimeout(timer);
  if (asking) return;
  if (document.hidden) put($("state"), "paused while this tab is hidden", "paused");
  else timer = setTimeout(round, 1000 * seconds);
}
document.addEventListener("visibilitychange", () => rest(0));
round();
