"use strict";
// The page of a running tree. The state arrives as changes to nodes and faults (see live.py); rows are kept and only
// differences are written. Everything from the tree is set as text, never as markup.

const token = location.hash.slice(1);
const nodes = new Map(), rows = new Map(), faults = new Map(), faultRows = new Map(), charts = new Map();
const tones = { ALIVE: "good", RUNNING: "good", PAUSED: "hold", RESTARTING: "busy", STARTING: "busy", STOPPING: "busy", DEAD: "bad" };
let order = [], chosen = null, lastId = "", ahead = 0, heard = 0, over = false, shownChart = null;

const $ = (id) => document.getElementById(id);
const now = () => Date.now() / 1000 + ahead;

function element(tag, look, text) {
  const made = document.createElement(tag);
  if (look) made.className = look;
  if (text !== undefined) made.textContent = text;
  return made;
}
function write(target, text) { if (target.textContent !== text) target.textContent = text; }
function look(target, name) { if (target.className !== name) target.className = name; }
function show(target, visible) { if (target.hidden === visible) target.hidden = !visible; }

function span(seconds) {
  if (seconds < 10) return `${Math.max(0, seconds).toFixed(1)} s`;
  const whole = Math.floor(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor(whole % 3600 / 60)} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor(whole % 86400 / 3600)} h`;
}
function brief(seconds) { return seconds < 1 ? `${Math.round(seconds * 1000)} ms` : span(seconds); }
function upFor(node) { return node.since === null ? "" : span(Math.floor(Math.max(0, now() - node.since))).replace(/\.0 s$/, " s"); }
function clock(at) { return new Date(at * 1000).toLocaleTimeString([], { hour12: false }); }
function placeOf(node) { return node.leaf ? `${node.state}.${node.leaf}` : node.state; }
function toneOf(node) {
  if (node.leaf === "SUSPECT" || node.leaf === "FAULTED") return "hold";
  if (node.leaf === "COMPLETED" || node.leaf === "STOPPED" || node.state === "DOWN") return "";
  return tones[node.state] || "";
}
function waitOf(node) { return node.due === null ? "" : `in ${Math.max(0, node.due - now()).toFixed(1)} s`; }

// --- the event stream ---------------------------------------------------------------------------
// fetch instead of EventSource, which cannot send the token in a header.

function linkIs(text, broken) { write($("link"), text); look($("link"), broken ? "link broken" : "link"); }

async function read() {
  const stop = new AbortController();
  heard = Date.now();
  const guard = setInterval(() => { if (Date.now() - heard > 15000) stop.abort(); }, 1000);
  try {
    const headers = { "X-Rayvisor-Token": token, ...(lastId && { "Last-Event-ID": lastId }) };
    const answer = await fetch("events", { headers, signal: stop.signal, cache: "no-store" });
    if (!answer.ok) {
      const told = await answer.json().catch(() => ({ error: { message: answer.statusText } }));
      throw Object.assign(new Error(told.error.message), { final: answer.status === 401 || answer.status === 403 });
    }
    linkIs("live", false);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      heard = Date.now();
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      parts.forEach(take);
    }
  } finally { clearInterval(guard); }
}

async function follow() {
  for (let wait = 500; !over; wait = Math.min(8000, wait * 2)) {
    const before = lastId;
    try { await read(); } catch (error) {
      if (error.final) {
        linkIs("refused", true);
        notice(token ? `Refused: ${error.message}` : "The token is missing: open the URL exactly as printed, including the part after #.");
        return;
      }
    }
    if (over) return;
    if (lastId !== before) wait = 500;
    linkIs("connection lost, reconnecting", true);
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}

function take(message) {
  let kind = "", data = "", id = "";
  for (const line of message.split("\n")) {
    if (line.startsWith("event: ")) kind = line.slice(7);
    else if (line.startsWith("data: ")) data += line.slice(6);
    else if (line.startsWith("id: ")) id = line.slice(4);
  }
  if (kind === "over") { over = true; linkIs("the tree has ended", false); ended(); }
  if (kind !== "state") return;
  const told = JSON.parse(data);
  ahead = told.now - Date.now() / 1000;
  if (told.full) { nodes.clear(); faults.clear(); order = []; }
  for (const node of told.nodes) nodes.set(node.path, node);
  if (told.order) {
    order = told.order;
    const there = new Set(order);
    for (const path of nodes.keys()) if (!there.has(path)) nodes.delete(path);
  }
  for (const fault of told.faults) faults.set(fault.id, fault);
  while (faults.size > 100) faults.delete(Math.min(...faults.keys()));
  lastId = id;
  draw({ changed: told.full ? order : told.nodes.map((node) => node.path), structure: Boolean(told.order) || told.full, faults: told.faults });
}

function notice(text) { write($("notice"), text); show($("notice"), Boolean(text)); }

// --- drawing ------------------------------------------------------------------------------------

function draw(what) {
  const body = $("rows");
  if (what.structure) {
    for (const [path, row] of rows) if (!nodes.has(path)) { row.line.remove(); rows.delete(path); }
    let at = body.firstChild;
    for (const path of order) {
      if (!path) continue;
      const row = rows.get(path) || makeRow(path);
      if (row.line === at) at = at.nextSibling; else body.insertBefore(row.line, at);
    }
    if (chosen === null || !nodes.has(chosen)) choose(order.find((path) => nodes.get(path).kind === "engine") || order[1] || null);
  }
  for (const path of what.changed) if (rows.has(path)) drawRow(path);
  const root = nodes.get("");
  if (root && !over) { write($("tree-state"), root.state); look($("tree-state"), `badge ${toneOf(root)}`); }
  drawFigures();
  if (what.changed.includes(chosen) || what.structure) drawDetail();
  if (what.structure && faultRows.size) for (const [id, line] of faultRows) if (!faults.has(id)) { line.remove(); faultRows.delete(id); }
  what.faults.forEach(drawFault);
  show($("no-faults"), faults.size === 0);
  $("faults").tabIndex = faults.size ? 0 : -1; // a scrolling list must be reachable by keyboard
}

function makeRow(path) {
  const line = element("tr"), first = element("td"), inner = element("div");
  const row = { line, name: element("button", "name", path.split("/").pop()), kind: element("span", "kind"), badge: element("span", "badge"),
    holds: element("span", "holds"), due: element("span", "due"), count: element("td", "number wide"), up: element("td", "number"),
    meter: element("meter"), used: element("span"), requests: element("td", "number wide") };
  const depth = path.split("/").length - 1;
  inner.className = `depth-${Math.min(5, depth)}`;
  row.name.type = "button";
  row.name.tabIndex = -1;
  row.name.dataset.path = path;
  inner.append(row.name, " ", row.kind);
  first.append(inner);
  const state = element("td"), restarts = element("td", "number");
  state.append(row.badge, row.holds, row.due);
  row.meter.setAttribute("aria-hidden", "true");
  restarts.append(row.meter, row.used);
  line.append(first, state, row.count, row.up, restarts, row.requests);
  rows.set(path, row);
  return row;
}

function drawRow(path) {
  const node = nodes.get(path), row = rows.get(path);
  write(row.kind, node.kind);
  write(row.badge, node.leaf || node.state);
  if (row.badge.title !== placeOf(node)) row.badge.title = placeOf(node);
  look(row.badge, `badge ${toneOf(node)}`);
  write(row.holds, node.holds.filter((hold) => hold !== node.leaf).map((hold) => `+${hold}`).join(" "));
  write(row.due, waitOf(node));
  write(row.count, node.incarnation ? String(node.incarnation) : "");
  write(row.up, upFor(node));
  show(row.meter, Boolean(node.restarts));
  if (node.restarts) {
    const [used, intensity] = node.restarts;
    Object.assign(row.meter, { max: Math.max(1, intensity), high: Math.max(1, intensity) * 0.6, low: 0.01, optimum: 0, value: used });
  }
  write(row.used, node.restarts ? `${node.restarts[0]} of ${node.restarts[1]}` : "");
  const asked = node.requests;
  write(row.requests, !asked ? "" : node.kind === "engine_pool" ? `${asked.in_flight} + ${asked.waiting} waiting` : `${asked.in_flight} in flight`);
}

function drawFigures() {
  const sum = { rate: 0, in_flight: 0, waiting: 0, replayed: 0, finished: 0, failed: 0 };
  let pools = 0;
  for (const node of nodes.values()) if (node.kind === "engine_pool" && node.requests) {
    pools += 1;
    for (const key of Object.keys(sum)) sum[key] += node.requests[key] || 0;
  }
  const list = $("figures");
  if (!list.firstChild) for (const [key, words] of [["rate", "tokens/s"], ["in_flight", "in flight"], ["waiting", "waiting"],
    ["replayed", "replayed"], ["finished", "finished"], ["failed", "lost"]]) {
    const cell = element("div"), value = element("dd");
    value.dataset.key = key;
    cell.append(element("dt", "", words), value);
    list.append(cell);
  }
  show(list, pools > 0);
  for (const cell of list.children) {
    const value = cell.lastChild, key = value.dataset.key;
    write(value, key === "rate" ? String(Math.round(sum[key])) : String(sum[key]));
    look(cell, key === "failed" && sum.failed ? "bad" : "");
  }
}

function choose(path) {
  const before = rows.get(chosen), row = rows.get(path);
  if (before) { before.line.classList.remove("chosen"); before.name.tabIndex = -1; before.name.removeAttribute("aria-current"); }
  chosen = path;
  if (row) { row.line.classList.add("chosen"); row.name.tabIndex = 0; row.name.setAttribute("aria-current", "true"); }
  disarm();
  drawDetail();
}

function fact(list, words, text, tone) {
  if (text === "" || text === null || text === undefined) return;
  list.push([words, text, tone || ""]);
}

function drawDetail() {
  const node = nodes.get(chosen);
  show($("child-buttons"), Boolean(node));
  if (!node) return;
  write($("child-title"), node.path);
  write($("child-state"), placeOf(node));
  look($("child-state"), `badge ${toneOf(node)}`);
  const list = [];
  fact(list, "kind", node.kind + (node.incarnation ? `, incarnation ${node.incarnation}` : "") + (node.epoch === null ? "" : `, host ${node.epoch}`));
  fact(list, "up", upFor(node));
  fact(list, "starts again", waitOf(node));
  fact(list, "holds", node.holds.join(", "));
  if (node.restarts) fact(list, "restarts", `${node.restarts[0]} of ${node.restarts[1]} within ${node.restarts[2]} s`);
  if (node.requests) fact(list, "requests", `${node.requests.in_flight} in flight` + (node.kind === "engine_pool"
    ? `, ${node.requests.waiting} waiting, ${node.requests.finished} finished, ${node.requests.replayed} replayed, ${node.requests.failed} lost` : ""));
  fact(list, "at", node.url);
  fact(list, "processes", node.processes.join(", "));
  if (node.fault) {
    fact(list, "last fault", `${node.fault.root} (${node.fault.class}, incarnation ${node.fault.incarnation}, ${span(Math.floor(now() - node.fault.at)).replace(".0 s", " s")} ago)`, "bad");
    fact(list, "log", node.fault.log);
  }
  const shown = $("facts");
  while (shown.children.length > 2 * list.length) shown.lastChild.remove();
  list.forEach(([words, text, tone], number) => {
    if (shown.children.length <= 2 * number) shown.append(element("dt"), element("dd"));
    write(shown.children[2 * number], words);
    write(shown.children[2 * number + 1], text);
    look(shown.children[2 * number + 1], tone);
  });
  const way = JSON.stringify(node.steps);
  if ($("steps").dataset.way !== chosen + way) {
    $("steps").dataset.way = chosen + way;
    $("steps").replaceChildren(...node.steps.map(([place, event, incarnation, at]) => {
      const step = element("li"), badge = element("span", `badge ${toneOf({ state: place.split(".")[0], leaf: place.split(".")[1] })}`, place.split(".").pop());
      badge.title = `${event}, incarnation ${incarnation}, ${clock(at)}`;
      step.append(element("small", "", event), badge);
      return step;
    }));
  }
  show($("steps-title"), node.steps.length > 0);
  drawCounts(node);
  drawChart(node);
}

function drawCounts(node) {
  const moves = node.passes.filter(([from, , to]) => from !== to), key = chosen + JSON.stringify(moves);
  show($("counts"), moves.length > 0);
  if ($("counts").dataset.key === key) return;
  $("counts").dataset.key = key;
  $("counts").lastElementChild.replaceChildren(...moves.map(([from, event, to, times, seconds]) => element("li", "",
    `${from.split(".").pop()} to ${to.split(".").pop()} (${event}): ${times === 1 ? "once" : `${times} times`}, after ${brief(seconds / times)}`)));
}

async function drawChart(node) {
  const frame = $("chart"), name = node.chart;
  show(frame, Boolean(name));
  if (!name) return;
  if (!charts.has(name)) {
    charts.set(name, null);
    try {
      const text = await (await fetch(`chart/${name}.svg`)).text();
      const picture = document.importNode(new DOMParser().parseFromString(text, "image/svg+xml").documentElement, true);
      charts.set(name, picture);
    } catch { charts.delete(name); return; }
    node = nodes.get(chosen);
    if (!node || node.chart !== name) return;
  }
  const picture = charts.get(name);
  if (!picture) return;
  if (frame.firstChild !== picture) { frame.replaceChildren(picture); shownChart = null; }
  const key = `${node.path} ${placeOf(node)} ${node.steps.length && node.steps.at(-1)[3]}`;
  if (shownChart === key) return;
  shownChart = key;
  const passed = new Set(node.steps.map(([place]) => place.split(".").pop()));
  let live = null;
  for (const group of picture.querySelectorAll("[data-leaf]")) {
    const leaf = group.dataset.leaf, here = leaf === node.leaf || (!node.leaf && leaf === node.state);
    group.classList.toggle("lit", here || passed.has(leaf));
    const card = group.querySelector("rect.card");
    card.classList.toggle("live", here);
    card.classList.toggle("passed", !here && passed.has(leaf));
    if (here) live = card;
  }
  frame.setAttribute("aria-label", `Chart of ${node.path}: now in ${placeOf(node)}`);
  if (live) {
    const spot = live.getBoundingClientRect(), area = frame.getBoundingClientRect();
    frame.scrollBy({ top: spot.top + spot.height / 2 - area.top - area.height / 2, left: spot.left + spot.width / 2 - area.left - area.width / 2 });
  }
}

function drawFault(fault) {
  let line = faultRows.get(fault.id);
  if (!line) {
    line = element("li");
    faultRows.set(fault.id, line);
    $("faults").prepend(line);
  }
  const when = element("time", "", clock(fault.at)), what = element("div");
  when.dateTime = new Date(fault.at * 1000).toISOString();
  const first = element("div");
  first.append(element("span", "badge bad", fault.class), ` ${fault.child} #${fault.incarnation} `, element("span", "root", fault.root));
  what.append(first);
  const more = element("div", "more");
  const said = fault.decision;
  if (said) more.append(`decided: ${said.what.replace("_", " ")}${said.delay ? ` after ${said.delay.toFixed(2)} s` : " immediately"} (${said.why}; ${said.restarts} of ${said.intensity} restarts used) `);
  else more.append("no decision yet ");
  if (fault.recovered !== null) more.append(element("span", "came", `recovered after ${brief(fault.recovered)}`));
  else if (fault.ended) more.append(element("span", "lost", "not restarted"));
  what.append(more);
  const back = [fault.phase && `while ${fault.phase}`, fault.source && `seen by ${fault.source}`, fault.place, fault.log && `log: ${fault.log}`].filter(Boolean).join("; ");
  if (back) what.append(element("div", "more", back));
  if (fault.chain.length) what.append(element("div", "more", `seen first as: ${fault.chain.join(" > ")}`));
  line.replaceChildren(when, what);
  while (faultRows.size > 100) { const [oldest, gone] = faultRows.entries().next().value; gone.remove(); faultRows.delete(oldest); }
}

// --- clocks between messages --------------------------------------------------------------------

setInterval(() => {
  if (over || document.hidden) return;
  for (const [path, row] of rows) { const node = nodes.get(path); if (node) write(row.up, upFor(node)); }
  drawDetail();
}, 1000);
setInterval(() => {
  if (over) return;
  for (const [path, row] of rows) { const node = nodes.get(path); if (node && node.due !== null) write(row.due, waitOf(node)); }
}, 100);

function ended() {
  write($("tree-state"), "ENDED");
  look($("tree-state"), "badge");
  for (const button of document.querySelectorAll(".buttons button")) button.disabled = true;
  notice("The tree has ended. This is its last known state.");
}

// --- buttons ------------------------------------------------------------------------------------

let armed = null, armedUntil = 0;
function disarm() { if (armed) { armed.textContent = "Restart"; armed.classList.remove("armed"); armed = null; } }

async function act(button) {
  const verb = button.dataset.verb, path = button.dataset.path ?? chosen;
  if (verb === "restart" && armed !== button) {
    armed = button;
    button.textContent = "Really restart?";
    button.classList.add("armed");
    clearTimeout(armedUntil);
    armedUntil = setTimeout(disarm, 5000);
    return;
  }
  disarm();
  const name = path || "the tree";
  answer(`${verb} ${name} ...`, "");
  try {
    const got = await fetch(verb, { method: "POST", headers: { "X-Rayvisor-Token": token, "Content-Type": "application/json" }, body: JSON.stringify({ path }) });
    const told = await got.json();
    if (!got.ok) throw new Error(told.error.message);
    answer(`${verb} ${name}: done${told.in_flight ? `, ${told.in_flight} in flight` : ""}`, "good");
  } catch (error) { answer(`${verb} ${name}: ${error.message}`, "bad"); }
}
let answerUntil = 0;
function answer(text, tone) {
  write($("answer"), text);
  look($("answer"), `answer ${tone}`);
  show($("answer"), true);
  clearTimeout(answerUntil);
  if (tone) answerUntil = setTimeout(() => show($("answer"), false), tone === "bad" ? 15000 : 5000);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.verb) act(button);
  else if (button.classList.contains("name")) choose(button.dataset.path);
});
$("rows").addEventListener("keydown", (event) => {
  const here = event.target.closest("tr");
  const next = { ArrowDown: here?.nextElementSibling, ArrowUp: here?.previousElementSibling, Home: $("rows").firstChild, End: $("rows").lastChild }[event.key];
  if (!next) return;
  event.preventDefault();
  const name = next.querySelector(".name");
  choose(name.dataset.path);
  name.focus();
});

follow();
