// Each device on this page is a client of its own: its own token, its own socket, its own copy of the state. Nothing is
// passed between them here; what one changes reaches the others through the server.
"use strict";

const PRODUCTS = {
  "espresso-cup": { name: "Espresso cup", price: 1200, icon: '<path d="M9 13h15v7a6 6 0 0 1-6 6h-3a6 6 0 0 1-6-6z"/><path d="M24 15h2a3 3 0 0 1 0 6h-2M7 29h19"/>' },
  "moka-pot": { name: "Moka pot", price: 3900, icon: '<path d="M11 6h11l-2 9h-7zM13 15l-3 12h13l-3-12M22 8l5 2v8M16.500 3v3"/>' },
  beans: { name: "Coffee beans", price: 1450, icon: '<path d="M9 9h15v18H9zM9 9l2-4h11l2 4"/><ellipse cx="16.500" cy="18" rx="3.500" ry="5"/><path d="M16.500 13c-2 3 2 6 0 10"/>' },
  grinder: { name: "Grinder", price: 8900, icon: '<path d="M10 15h13v12H10zM12 15l-2-6h13l-2 6M16.500 9V5h7M14 21h5"/>' },
};
const SOCKET = `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/connection/websocket`;
const money = (cents) => "€ " + (cents / 100).toFixed(2);
const $ = (selector, root = document) => root.querySelector(selector);
const escape = (text) => text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);

const began = {}; // when this page did something, to show how long the other devices took to see it
const took = {};

class Device {
  constructor(channel, token) {
    this.channel = channel;
    this.root = $(`[data-channel="${channel}"]`);
    this.cart = { items: {}, discount: 0 };
    this.messages = new Map();
    this.conversation = null;
    this.owner = null;
    this.open(token);
  }

  open(token) {
    this.token = token;
    this.client = new Centrifuge(SOCKET, { token });
    this.client.on("connected", () => status(this.channel, true));
    this.client.on("connecting", () => status(this.channel, false));
    this.client.connect();
  }

  // The state and the position at which it was read; the subscription goes on from exactly there.
  async follow(customer, token = this.token) {
    const { value, position } = await this.read(token);
    this.show(value);
    this.topic = `customer:${customer}`;
    this.subscription = this.client.newSubscription(this.topic, { since: position, token: token === this.token ? undefined : token });
    this.subscription.on("publication", (ctx) => this.on(ctx.data, ctx.offset));
    this.subscription.on("subscribed", async (ctx) => {
      if (ctx.wasRecovering && !ctx.recovered) this.show((await this.read(token)).value);
    });
    this.subscription.subscribe();
  }

  async read(token) {
    const answer = await fetch("/v1/customers/me/states/Cart", { headers: { Authorization: `Bearer ${token}` } });
    if (!answer.ok) throw new Error((await answer.json()).detail);
    return answer.json();
  }

  async call(method, data) {
    try {
      return (await this.client.rpc(method, data)).data;
    } catch (error) {
      tell(error.message);
      throw error;
    }
  }

  act(method, data, mark) {
    began[mark] = performance.now();
    return this.call(method, data);
  }

  on(event, offset) {
    if (event.type === "state.changed" && event.state === "Cart") this.change(event);
    if (event.type === "message") this.add(event);
    if (event.type.startsWith("conversation.")) this.move(event);
    this.flash(event);
    if (this.channel === "web") logEntry(event, offset);
  }

  change(event) {
    const cart = event.replace ? { items: {}, discount: 0 } : { ...this.cart, items: { ...this.cart.items } };
    Object.assign(cart, event.set);
    for (const [sku, quantity] of Object.entries(event.put?.items ?? {})) cart.items[sku] = quantity;
    for (const sku of event.drop?.items ?? []) delete cart.items[sku];
    this.show(cart);
  }

  show(cart) {
    this.cart = cart;
    const target = $("[data-cart]", this.root);
    if (!target) return;
    const lines = Object.entries(cart.items);
    if (!lines.length) { target.innerHTML = '<p class="empty">The cart is empty.</p>'; return; }
    const sum = lines.reduce((total, [sku, n]) => total + n * (PRODUCTS[sku]?.price ?? 0), 0);
    const rows = lines.map(([sku, n]) => `<tr data-sku="${escape(sku)}"><td>${escape(PRODUCTS[sku]?.name ?? sku)}</td><td class="n">× ${n}</td><td>${money(n * (PRODUCTS[sku]?.price ?? 0))}${this.channel === "web" ? ` <button class="less" type="button" aria-label="one ${escape(sku)} less">−</button>` : ""}</td></tr>`);
    const discount = cart.discount ? `<tr class="discount"><td colspan="2">Discount ${cart.discount} %</td><td>− ${money((sum * cart.discount) / 100)}</td></tr>` : "";
    target.innerHTML = `<table>${rows.join("")}${discount}<tr class="total"><td colspan="2">Total</td><td>${money(sum * (1 - cart.discount / 100))}</td></tr></table>`;
  }

  add(message) {
    this.messages.set(message.index, message);
    this.paint();
  }

  move(event) {
    if (this.conversation && event.conversation !== this.conversation) return;
    this.conversation = event.conversation;
    this.owner = event.owner;
    this.moved = event;
    const hints = $("#hints", this.root);
    if (hints) hints.hidden = event.type !== "conversation.started";
    const badge = $("[data-owner]", this.root);
    if (badge) badge.textContent = event.owner.kind === "queue" ? "waiting for a person" : event.owner.name;
    const note = $("[data-agent-note]", this.root);
    if (note && event.type === "conversation.claimed") note.textContent = `${event.owner.name} is helping you in the chat.`;
    this.paint();
  }

  paint() {
    const list = $("[data-messages]", this.root);
    if (!list) return;
    const mine = this.channel === "agent desk" ? (m) => m.role === "helper" && m.author === demo.agent : (m) => m.role === "customer";
    const items = [...this.messages.values()].sort((a, b) => a.index - b.index).map((m) =>
      `<li class="${mine(m) ? "mine" : ""}"><small>${escape(m.role === "customer" ? `Ana, ${m.channel}` : m.author)}</small>${escape(m.text)}</li>`);
    if (this.moved?.type === "conversation.handed_off") items.push('<li class="event">Waiting for a person …</li>');
    if (this.moved?.type === "conversation.claimed") items.push(`<li class="event">${escape(this.moved.owner.name)} has the conversation</li>`);
    list.innerHTML = items.join("") || '<li class="empty">Ask something. A bot answers first.</li>';
    list.scrollTop = list.scrollHeight;
  }

  flash(event) {
    const mark = markOf(event);
    if (began[mark] !== undefined && event.channel !== this.channel) {
      const ms = performance.now() - began[mark];
      took[mark] = Math.max(took[mark] ?? 0, ms);
      const tag = $(".tag", this.root);
      tag.innerHTML = `${this.channel} <span class="seen">after ${ms.toFixed(1)} ms</span>`;
    }
    this.root.classList.add("fresh");
    clearTimeout(this.fading);
    this.fading = setTimeout(() => this.root.classList.remove("fresh"), 700);
  }
}

// What ties an event to the click that caused it, on this page only.
function markOf(event) {
  if (event.type === "message") return `say:${event.text}`;
  if (event.type === "state.changed") return `cart:${event.channel}`;
  return event.type;
}

const up = new Set();
function status(channel, live) {
  live ? up.add(channel) : up.delete(channel);
  $("#status-dot").classList.toggle("live", up.size === 4);
  $("#status").textContent = up.size === 4 ? "4 channels live" : `${up.size} of 4 channels connected`;
}
function tell(text) { const shown = $("#error"); shown.textContent = text; shown.hidden = false; setTimeout(() => { shown.hidden = true; }, 6000); }

function describe(event) {
  if (event.type === "message") return `${event.role === "customer" ? "Ana" : event.author}: ${event.text}`;
  if (event.type.startsWith("conversation.")) return `${event.type.slice(13).replace("_", " ")} → ${event.owner?.name ?? ""}`;
  const parts = [];
  for (const [sku, n] of Object.entries(event.put?.items ?? {})) parts.push(`${sku} = ${n}`);
  for (const sku of event.drop?.items ?? []) parts.push(`${sku} removed`);
  for (const [field, value] of Object.entries(event.set ?? {})) if (field !== "discount" || value) parts.push(`${field} = ${JSON.stringify(value)}`);
  return `${event.state ?? event.type}  ${parts.join(", ")}`;
}

const TONES = { web: "--web", mobile: "--mobile", whatsapp: "--whatsapp", "agent desk": "--desk" };
function logEntry(event, offset) {
  const who = event.role === "helper" && event.author !== demo.agent ? "bot" : event.channel ?? event.owner?.name ?? "";
  const item = document.createElement("li");
  item.innerHTML = `<span class="offset">${offset}</span><span class="who" style="--tone:var(${TONES[event.channel] ?? "--accent"})">${escape(who)}</span><span class="what">${escape(describe(event))}</span><span class="ms"></span>`;
  $("#log").prepend(item);
  while ($("#log").children.length > 12) $("#log").lastChild.remove();
  const mark = markOf(event);
  if (began[mark] !== undefined) setTimeout(() => { if (took[mark]) $(".ms", item).textContent = `all saw it in ${took[mark].toFixed(1)} ms`; delete began[mark]; delete took[mark]; }, 250);
}

let demo, web, mobile, whatsapp, desk;

async function start() {
  const visitor = new URLSearchParams(location.search).get("visitor") ?? localStorage.getItem("omnistate-visitor") ?? "";
  demo = await (await fetch(`/demo/start?visitor=${encodeURIComponent(visitor)}`, { method: "POST" })).json();
  localStorage.setItem("omnistate-visitor", demo.visitor);
  web = new Device("web", demo.tokens.web);
  mobile = new Device("mobile", demo.tokens.mobile);
  whatsapp = new Device("whatsapp", demo.tokens.whatsapp);
  desk = new Device("agent desk", demo.tokens["agent desk"]);
  whatsapp.paint();
  await Promise.all([web, mobile, whatsapp].map((device) => device.follow(demo.customer)));
  await followQueue();
}

async function followQueue() {
  const queue = desk.client.newSubscription("queue:agents");
  const look = async () => {
    const { waiting } = await desk.call("queue.waiting", { queue: "agents" });
    $("#queue").innerHTML = waiting.length ? `<b>${waiting.length}</b> ${waiting.length === 1 ? "customer waits" : "customers wait"}` : "Nobody waits.";
    $("#claim").disabled = !waiting.length;
  };
  queue.on("publication", look);
  queue.on("subscribed", look);
  queue.subscribe();
}

async function claim() {
  began["conversation.claimed"] = performance.now();
  const claimed = await desk.call("queue.claim", { queue: "agents" });
  if (!claimed.conversation) return;
  desk.conversation = claimed.conversation;
  desk.messages.clear();
  // The grant that came with the claim opens this customer for Maria: a connection of its own, with that token.
  if (desk.grant) desk.grant.disconnect();
  desk.grant = new Centrifuge(SOCKET, { token: claimed.token });
  desk.grant.connect();
  desk.customerCall = async (method, data) => (await desk.grant.rpc(method, data)).data;
  if (desk.subscription) { desk.subscription.unsubscribe(); desk.client.removeSubscription(desk.subscription); }
  await desk.follow(claimed.customer, claimed.token);
  const { messages } = await desk.customerCall("conversation.messages", { conversation: claimed.conversation });
  for (const message of messages) desk.messages.set(message.index, message);
  desk.paint();
  $("#desk-customer").hidden = false;
  for (const element of $('[data-compose="agent desk"]').elements) element.disabled = false;
}

async function say(text) {
  if (!whatsapp.conversation) whatsapp.conversation = (await whatsapp.call("conversation.start", {})).conversation;
  await whatsapp.act("conversation.say", { conversation: whatsapp.conversation, text }, `say:${text}`);
}

$("#products").innerHTML = Object.entries(PRODUCTS).map(([sku, p]) =>
  `<li><svg viewBox="0 0 33 33" fill="none" stroke="#2f6fde" stroke-width="1.800" stroke-linecap="round" stroke-linejoin="round">${p.icon}</svg><b>${p.name}</b><small>${money(p.price)}</small><button type="button" data-add="${sku}">Add to cart</button></li>`).join("");
document.addEventListener("click", async (event) => {
  const { add, say: text } = event.target.dataset;
  if (add) await web.act("Cart.add", { sku: add }, "cart:web");
  if (text) await say(text);
  if (event.target.matches(".less")) await web.act("Cart.remove", { sku: event.target.closest("tr").dataset.sku }, "cart:web");
  if (event.target.id === "mobile-add") await mobile.act("Cart.add", { sku: "beans" }, "cart:mobile");
  if (event.target.id === "claim") await claim();
  if (event.target.id === "discount") { began["cart:agent desk"] = performance.now(); await desk.customerCall("Cart.grant_discount", { percent: 10 }); }
});
document.addEventListener("submit", async (event) => {
  event.preventDefault();
  const input = event.target.elements.text, text = input.value.trim();
  if (!text) return;
  input.value = "";
  if (event.target.dataset.compose === "whatsapp") await say(text);
  else { began[`say:${text}`] = performance.now(); await desk.customerCall("conversation.say", { conversation: desk.conversation, text }); }
});
start().catch((error) => tell(error.message));
