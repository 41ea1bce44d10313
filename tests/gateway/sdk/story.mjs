// The real JavaScript SDK against the gateway: connects, subscribes, calls, is cut off, comes back and misses nothing.
// Arguments: socket URL, token, topic. Prints one JSON object a line; reads commands on standard input.
import { Centrifuge } from "centrifuge";
import WebSocket from "ws";
import { createInterface } from "node:readline";

const [url, token, topic, since] = process.argv.slice(2);
const say = (said) => process.stdout.write(JSON.stringify(said) + "\n");

const client = new Centrifuge(url, { token, websocket: WebSocket, minReconnectDelay: 10, maxReconnectDelay: 50 });
client.on("connected", () => say({ connected: true }));
client.on("connecting", (ctx) => say({ connecting: ctx.code }));
client.on("disconnected", (ctx) => say({ disconnected: ctx.code }));

const subscription = client.newSubscription(topic, since ? { since: JSON.parse(since) } : {});
subscription.on("subscribed", (ctx) => say({ subscribed: true, recovered: ctx.recovered, wasRecovering: ctx.wasRecovering }));
subscription.on("unsubscribed", (ctx) => say({ unsubscribed: ctx.code }));
subscription.on("publication", (ctx) => say({ offset: ctx.offset, data: ctx.data }));
subscription.subscribe();
client.connect();
// Asked before the connection is up: the SDK sends it with the first frames, and it must be answered in order.
client.rpc("Cart.add", { sku: "early" }).then((answer) => say({ early: answer.data.version }), (error) => say({ early: error.code }));

createInterface({ input: process.stdin }).on("line", async (line) => {
  const { rpc, data, end } = JSON.parse(line);
  if (end) { client.disconnect(); process.exit(0); }
  try { say({ result: (await client.rpc(rpc, data)).data }); } catch (error) { say({ error: error.code }); }
});
