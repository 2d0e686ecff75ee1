// Writes request lines with pino: asked for a number of them on stdin, it answers with the µs CPU that one takes.
// The first argument says how: "sync" is pino's default, a write a line; "batched" gathers them (sync: false).
import { createInterface } from "node:readline";
import pino from "pino";

const BUSY_TURN = 16;
const batched = process.argv[2] === "batched";
const destination = pino.destination({
  dest: "/dev/null",
  sync: !batched,
  minLength: batched ? 4096 : 0,
});
const logger = pino(
  {
    formatters: { level: (label) => ({ level: label }) },
    base: { service: "bench", env: "development" },
    timestamp: pino.stdTimeFunctions.isoTime,
  },
  destination,
);
const urls = Array.from({ length: 16 }, (_, number) => `/api/listings/${number}?type=house`);
const nextTurn = () => new Promise(setImmediate);

function write(number) {
  logger.info({
    type: "request",
    method: "GET",
    url: urls[number % 16],
    statusCode: 200,
    duration: 2.431 + (number % 16) / 1000,
    requestId: "4e4ac6d3c1f0a3fb7b2e7d5ff2a0b6c1",
    route: "/api/listings/{listing_id}",
    outcome: "completed",
    trace_id: "4e4ac6d3c1f0a3fb7b2e7d5ff2a0b6c1",
    span_id: "0b7a3f6a1c55d0e2",
    bytes: 34,
  });
}

async function cpuOf(lines, each) {
  const before = process.cpuUsage();
  for (let number = 0; number < lines; number += 1) {
    each(number);
    if (number % BUSY_TURN === BUSY_TURN - 1) await nextTurn();
  }
  const used = process.cpuUsage(before);
  return used.user + used.system;
}

console.log("null");
for await (const question of createInterface({ input: process.stdin })) {
  const lines = Number(JSON.parse(question));
  const turns = await cpuOf(lines, () => {});
  console.log(JSON.stringify(((await cpuOf(lines, write)) - turns) / lines));
}
