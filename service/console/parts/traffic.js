// What the metrics say of slots and of each adapter; nothing where the key may not see them.
import { api } from "../api.js";

const LINE = /^ipet_(slots|slots_used|adapter_requests_total|adapter_seconds_sum|adapter_seconds_count)(?:\{adapter="([^"]*)"\})? (\S+)$/gm;

// `slots` and `used`, and by adapter `requests` and mean `milliseconds`.
export async function traffic() {
  const found = { slots: 0, used: 0, adapters: new Map() };
  let text;
  try {
    text = await (await api.send("/metrics")).text();
  } catch {
    return found;
  }
  for (const [, name, adapter, number] of text.matchAll(LINE)) {
    if (name === "slots") found.slots = Number(number);
    else if (name === "slots_used") found.used = Number(number);
    else found.adapters.set(adapter, { ...found.adapters.get(adapter), [name]: Number(number) });
  }
  for (const one of found.adapters.values()) {
    one.requests = one.adapter_requests_total;
    one.milliseconds = one.adapter_seconds_count ? (1000 * one.adapter_seconds_sum) / one.adapter_seconds_count : null;
  }
  return found;
}
