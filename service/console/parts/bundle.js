// What is in the files of a bundle, or of a directory that PEFT saved: told apart, and looked at before they are sent.

const ENDINGS = { json: "config", safetensors: "weights", md: "card" };
const MOST_OF_CARD = 2 ** 20; // bytes that the service takes of a card, its pictures among them

// The files of the upload by its parts, told apart by their endings, as they may have been renamed.
export function parts(files) {
  const found = {};
  for (const file of files) {
    const part = ENDINGS[file.name.toLowerCase().split(".").at(-1)];
    const usual = ["adapter_config.json", "adapter_model.safetensors", "README.md"].includes(file.name);
    if (part && (!found[part] || usual)) found[part] = file;
  }
  return found;
}

// The config, read; it is PEFT's where it has a `peft_type` of PEFT's.
export async function configured(file) {
  let config;
  try {
    config = JSON.parse(await file.text());
  } catch (error) {
    throw new Error(`${file.name} is not JSON: ${error.message}`);
  }
  if (isForeign(config) || typeof config?.name === "string") return config;
  throw new Error(`${file.name} names no adapter: a bundle's config has a name, PEFT's a peft_type`);
}

export const isForeign = (config) => typeof config?.peft_type === "string" && config.peft_type !== "IPET";

export async function tensors(file) {
  const length = file.size < 8 ? Infinity : Number(new DataView(await file.slice(0, 8).arrayBuffer()).getBigUint64(0, true));
  if (length > file.size - 8) throw new Error(`${file.name} is cut short, or is no safetensors file`);
  JSON.parse(await file.slice(8, 8 + length).text());
}

// The card with the pictures that lie beside it in itself, as far as there is room for them.
export async function illustrated(card, files) {
  let text = await card.text();
  for (const picture of files.filter((file) => /\.(png|jpe?g|webp)$/i.test(file.name))) {
    const there = `](${picture.name})`;
    if (!text.includes(there) || text.length + 1.4 * picture.size > MOST_OF_CARD) continue;
    const bytes = new Uint8Array(await picture.arrayBuffer());
    const kind = picture.name.toLowerCase().split(".").at(-1).replace("jpg", "jpeg");
    text = text.replaceAll(there, `](data:image/${kind};base64,${btoa(bytes.reduce((all, byte) => all + String.fromCharCode(byte), ""))})`);
  }
  return new File([text], "README.md");
}

// A name for an adapter, from a folder's.
export const nameOf = (folder) => (folder ?? "").toLowerCase().replace(/[^a-z0-9._-]+/g, "-").replace(/^[^a-z0-9]+/, "").slice(0, 64);
