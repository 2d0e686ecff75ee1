// The original's stack: Fastify, bare or watched as the original watches it, with pino and prom-client. Its hooks
// were added inside of a hook, which Fastify refuses; here they are added once, and do the same.
import Fastify from "fastify";
import pino from "pino";
import { Counter, Histogram, Registry, collectDefaultMetrics } from "prom-client";

function watch(app) {
  const logger = pino({
    level: process.env.LOG_LEVEL || "info",
    formatters: { level: (label) => ({ level: label }) },
    base: { service: "bench", env: process.env.NODE_ENV || "development" },
    timestamp: pino.stdTimeFunctions.isoTime,
  });
  const registry = new Registry();
  collectDefaultMetrics({ register: registry });
  const requests = new Counter({
    name: "http_requests_total",
    help: "Total HTTP requests",
    labelNames: ["method", "route", "status"],
    registers: [registry],
  });
  const durations = new Histogram({
    name: "http_request_duration_ms",
    help: "HTTP request duration in milliseconds",
    labelNames: ["method", "route"],
    buckets: [10, 50, 100, 200, 500, 1000, 2000, 5000],
    registers: [registry],
  });
  app.decorateRequest("startedAt", 0);
  app.addHook("onRequest", (request, reply, done) => {
    request.startedAt = Date.now();
    done();
  });
  app.addHook("onSend", (request, reply, payload, done) => {
    const duration = Date.now() - request.startedAt;
    logger.info({
      type: "request",
      method: request.method,
      url: request.url,
      statusCode: reply.statusCode,
      duration,
      requestId: request.id,
    });
    done();
  });
  app.addHook("onSend", (request, reply, payload, done) => {
    const duration = Date.now() - request.startedAt;
    const route = request.routeOptions?.url || request.url;
    requests.inc({ method: request.method, route, status: reply.statusCode });
    durations.observe({ method: request.method, route }, duration);
    done();
  });
  app.get("/metrics", async (request, reply) => {
    reply.header("content-type", registry.contentType);
    return registry.metrics();
  });
}

const [how, port] = process.argv.slice(2);
const app = Fastify({ logger: false });
if (how === "watched") watch(app);
app.get("/items/:itemId", async (request) => ({ id: Number(request.params.itemId), name: "item" }));
await app.listen({ host: "127.0.0.1", port: Number(port) });
