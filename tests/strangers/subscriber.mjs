// A subscriber of a changefeed in JavaScript, made from docs/reference/protocol.md alone: nothing of ours, no package.
//
//   node subscriber.mjs                            Node 22 and newer
//   node --experimental-websocket subscriber.mjs   Node 20
//
// CHANGEFEED_URL: servers, ws://HOST:PORT separated by commas. CHANGEFEED_FEED: the feed. CHANGEFEED_CURSOR: the file in
// which the position is kept. Prints one line of JSON for each event, each once while it runs; a crash between a line
// and the saving of its position repeats lines. Goes on for ever; exit status 3: it cannot resume, someone must list
// everything anew; 1: the server wants no such client.

import { closeSync, fsyncSync, openSync, readFileSync, renameSync, writeSync } from "node:fs";
import { dirname } from "node:path";

const FEED = process.env.CHANGEFEED_FEED ?? "";
const CURSOR = process.env.CHANGEFEED_CURSOR ?? `${FEED}.cursor`;
const SERVERS = (process.env.CHANGEFEED_URL ?? "ws://127.0.0.1:7557").split(",").map((url) => url.trim());
const CANNOT_RESUME = [4530, 4531, 4532, 4533];
const HANDSHAKE_MS = 5_000; // Node 20 reports nothing when a server closes during the handshake
const SILENCE_MS = 25_000; // until `subscribed` announces another

let position = load(); // text; null: none yet
let redirected = []; // servers to try first

function load() {
  let text;
  try {
    text = readFileSync(CURSOR, "utf8");
  } catch (error) {
    if (error.code === "ENOENT") return null;
    return stop(3, `cannot read the position: ${error.message}`);
  }
  // A file that is there and holds no whole position is damaged: to begin anew would be to go on as if nothing happened.
  if (!/^\S+\.\d+\n$/.test(text)) stop(3, `${CURSOR} holds no position`);
  return text.trim();
}

function save() {
  const file = openSync(`${CURSOR}.new`, "w");
  writeSync(file, `${position}\n`);
  fsyncSync(file);
  closeSync(file);
  renameSync(`${CURSOR}.new`, CURSOR);
  const folder = openSync(dirname(CURSOR), "r");
  fsyncSync(folder);
  closeSync(folder);
}

function stop(status, why) {
  console.error(`subscriber: ${why}`);
  process.exit(status);
}

function seqOf(text) {
  return Number(text.slice(text.lastIndexOf(".") + 1));
}

// The effect of an event: the line is out when this returns. process.stdout.write() would only remember it.
function apply(seq, change) {
  const { id, resource, op, body = null } = change;
  let line = Buffer.from(`${JSON.stringify({ seq, id, resource, op, body })}\n`);
  while (line.length > 0) line = line.subarray(writeSync(1, line));
}

// False: a message was lost before this one.
function take(message) {
  const { after, to, runs } = message;
  const mine = seqOf(position);
  if (after > mine) return false;
  if (seqOf(to) <= mine) return true;
  for (const { seqs, changes } of runs ?? []) {
    changes.forEach((change, index) => {
      const seq = Array.isArray(seqs) ? seqs[index] : seqs + index;
      if (seq > mine) apply(seq, change);
    });
  }
  position = to;
  save();
  return true;
}

// One connection, until it ends: its close code, and whether it served for a second, which proves that the server works.
function session(url) {
  return new Promise((resolve) => {
    const socket = new WebSocket(`${url.replace(/\/+$/, "")}/v1`, ["changefeed.v1.json"]);
    const send = (message) => socket.readyState === WebSocket.OPEN && socket.send(JSON.stringify(message));
    let ended = false;
    let silenceMs = SILENCE_MS;
    let subscribed = 0; // when
    let saying, moving;
    let silence = setTimeout(() => end(1006), HANDSHAKE_MS);

    // The socket may not be able to end: a server that hangs answers no goodbye. It is left to itself.
    function end(code) {
      if (ended) return;
      ended = true;
      [silence, saying, moving].forEach(clearTimeout);
      socket.close();
      resolve({ code, served: subscribed > 0 && Date.now() - subscribed >= 1000 });
    }

    const on = {
      subscribed({ position: here, limits }) {
        subscribed = Date.now();
        silenceMs = limits.heartbeat_dead_s * 1000;
        if (position === null) {
          position = here;
          save();
        }
        saying = setInterval(() => send({ type: "handled", position }), limits.heartbeat_s * 1000 * 0.8);
      },
      events(message) {
        if (!take(message)) end(1000);
      },
      redirect({ servers, delay_s }) {
        redirected = [...servers];
        moving = setTimeout(() => end(4410), delay_s * 1000);
      },
      fault({ code, message }) {
        console.error(`subscriber: ${code}: ${message}`);
      },
    };
    const heard = () => {
      if (ended) return;
      clearTimeout(silence);
      silence = setTimeout(() => end(1006), silenceMs);
    };
    socket.onopen = () => {
      heard();
      const start = position === null ? { at: "beginning" } : { position };
      send({ type: "subscribe", feed: FEED, start, name: `stranger-${process.pid}`, client: "subscriber.mjs" });
    };
    socket.onmessage = ({ data }) => {
      if (ended) return;
      const message = JSON.parse(data);
      if (Object.hasOwn(on, message.type)) on[message.type](message);
      heard();
    };
    socket.onerror = () => end(1006);
    socket.onclose = ({ code }) => end(code);
  });
}

for (let tries = 0, turn = 0; ; ) {
  const { code, served } = await session(redirected.shift() ?? SERVERS[turn++ % SERVERS.length]);
  if (code >= 4500 && code <= 4999) stop(CANNOT_RESUME.includes(code) ? 3 : 1, `closed for good with ${code}`);
  tries = served ? 0 : tries + 1;
  const bound = Math.min(15_000, 100 * 2 ** (tries - 1));
  if (tries > 0) await new Promise((wake) => setTimeout(wake, Math.random() * bound));
}
