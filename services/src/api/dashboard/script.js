
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
      const item = add(legend, "span"), mark = add(item, "svg", { viewBox: "0 0 28 8", "aria-hidden": "true" });
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
    this.svg.setAttribute("aria-label", `Now: ${said}. At most ${known.length ? this.write(Math.max(...known)) : "–"}.`);
  }
}
const plots = {
  throughput: new Plot("plot-throughput", ["Sent", "Received"], speed, binary),
  requests: new Plot("plot-requests", ["Answers", "Errors (4xx, 5xx)"], rate),
  latency: new Plot("plot-latency", ["First byte, median", "First byte, 95 %", "Last byte, 95 %"], ms),
  connections: new Plot("plot-connections", ["Open", "Waiting for a task"], count),
};

/** The samples of /metrics by name and labels. */
function parse(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const sample = /^ringfence_(.+) (\S+)$/.exec(line);
    if (sample) found.set(sample[1], Number(sample[2]));
  }
  return (name) => found.get(name) ?? 0;
}
const BOUNDS = ["0.000100", "0.000300", "0.001000", "0.003000", "0.010000", "0.030000", "0.100000", "0.300000",
  "1.000000", "10.000000", "+Inf"];
/** Milliseconds that a part of what was counted between two samples did not exceed; nothing if that is nothing. */
function quantile(then, now, name, part) {
  const counts = BOUNDS.map((le) => `${name}_bucket{le="${le}"}`).map((key) => now(key) - then(key));
  const wanted = part * counts.at(-1);
  const at = counts.findIndex((count) => count >= wanted);
  if (!(wanted > 0)) return undefined;
  const [from, to] = [at ? Number(BOUNDS[at - 1]) : 0, Number(BOUNDS[Math.min(at, BOUNDS.length - 2)])];
  const below = at ? counts[at - 1] : 0;
  return 1000 * (from + (to - from) * (wanted - below) / (counts[at] - below));
}
const CODES = [200, 206, 301, 304, 400, 404, 405, 406, 408, 412, 414, 416, 431, 500, 501, 503, 505];
const answers = (sample, from, to = 600) => CODES.filter((code) => code >= from && code < to)
  .reduce((sum, code) => sum + sample(`http_requests_total{code="${code}"}`), 0);

let history = []; // of the last ten seconds: time and samples
let devices = [], memory = null;

function show(now, sample) {
  // A server that was started anew counts anew.
  if (history.length && sample("http_connections_total") < history.at(-1).sample("http_connections_total")) history = [];
  const before = history.at(-1), seconds = before && now - before.now;
  const grew = (of) => before && Math.max(0, of(sample) - of(before.sample)) / seconds;
  const named = (name) => (sample) => sample(name);
  const total = (name) => count(sample(name)), each = (name) => before ? rate(grew(named(name))) : "–";
  const then = history[0]?.sample;
  const [first, most, last] = [["first_byte", 0.5], ["first_byte", 0.95], ["request_duration", 0.95]]
    .map(([name, part]) => then && quantile(then, sample, `http_${name}_seconds`, part));
  const sent = grew(named("http_sent_bytes_total")), received = grew(named("http_received_bytes_total"));
  const requests = grew((sample) => answers(sample, 200)), errors = grew((sample) => answers(sample, 400));
  history.push({ now, sample });
  while (history[0].now < now - 10) history.shift();

  put($("uptime"), time(sample("uptime_seconds")));
  put($("tile-requests"), before ? rate(requests) : "–");
  put($("tile-sent"), before ? speed(sent) : "–");
  put($("tile-received"), before ? speed(received) : "–");
  put($("tile-latency"), first === undefined ? "–" : ms(first));
  put($("tile-connections"), total("http_connections_active"));
  put($("tile-free"), size(4096 * sample('frames{owner="free"}')));
  plots.throughput.add(now, before && [sent, received]);
  plots.requests.add(now, before && [requests, errors]);
  plots.latency.add(now, [first, most, last]);
  plots.connections.add(now, [sample("http_connections_active"), sample("tcp_waiting")]);

  fill("connections", [
    ["Open now", total("http_connections_active")],
    ["Waiting for a task now", total("tcp_waiting")],
    ["Ended, remembered for a while (TIME-WAIT)", total("tcp_time_wait")],
    ["Served since start", total("http_connections_total")],
    ["Answers since start", count(answers(sample, 200))],
    ["Sent since start", kib(sample("http_sent_bytes_total"))],
  ]);
  const away = (why, name) => [why, total(name), each(name)];
  const codes = (why, from, to) => [why, count(answers(sample, from, to)),
    before ? rate(grew((sample) => answers(sample, from, to))) : "–"];
  fill("refusals", [
    away("No room for another connection: comes again", "tcp_turned_away_total"),
    away("Reset: of no connection that is here", "tcp_refused_total"),
    away("Asked to leave after an answer: others waited", "http_made_room_total"),
    away("Cut off: slow while others waited", "http_gave_way_total"),
    away("408: the request did not arrive in time", 'http_requests_total{code="408"}'),
    away("503: no memory, or no disk", 'http_requests_total{code="503"}'),
    codes("4xx: all that clients did wrong", 400, 500),
    codes("5xx: all that went wrong here", 500, 600),
  ]);
  fill("queues", devices.flatMap((device) => device.queues.map(({ index, size }) => {
    const key = (name) => `queue_${name}{device=${JSON.stringify(device.address)},queue="${index}"}`;
    const held = sample(key("in_flight"));
    const both = (name) => ({ text: each(key(name)), small: total(key(name)) });
    const errors = (name) => ({ text: total(key(name)), bad: sample(key(name)) > 0 });
    return [{ text: device.address, small: device.name }, `${index}: ${use(device.driver, index)}`,
      { text: `${held} of ${size}`, share: held / size }, both("kicks_total"), both("interrupts_total"),
      both("completions_total"), errors("rejected_total"), errors("given_up_total")];
  })));
}
const use = (driver, index) => driver !== "virtio-net" ? "requests" : index % 2 ? "transmit" : "receive";

function showDevices() {
  fill("devices", devices.map(({ address, id, name, driver, features }) => [{ text: address, small: id }, name,
    driver ?? "none", features.join(" ") || "–"]));
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
    const frame = start / 4096, run = places.find(([start, count]) => start <= frame && frame < start + count);
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
    const sample = parse(await get("/metrics")), now = performance.now() / 1000;
    if (turn % 10 === 0) devices = JSON.parse(await get("/api/devices"));
    if (turn % 5 === 0) memory = JSON.parse(await get("/api/memory"));
    return { sample, now };
  } catch (error) {
    failures++;
    since ??= new Date();
    const wait = Math.min(2 ** failures, 16), why = error.message.startsWith("it answers") ? ` (${error.message})` : "";
    const clock = since.toLocaleTimeString("en", { hour12: false });
    put($("state"), `not reachable since ${clock}${why}; asking again every ${wait} s`, "lost");
    return { wait };
  }
}
async function round() {
  asking = true;
  const { sample, now, wait = 1 } = await ask();
  asking = false;
  if (sample) {
    if (failures) history = [];
    if (turn % 10 === 0) showDevices();
    if (turn % 5 === 0) showMemory();
    show(now, sample);
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
