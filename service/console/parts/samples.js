// The samples of a clip for drawing: 16 kHz, one channel. A clip is decoded whole by the browser, as long as that has
// room; a larger wav, of hours even, is read where it is looked at.

export const RATE = 16000; // what the adapters hear
const LONGEST = 20 * 60; // seconds that are decoded whole: at 48 kHz in stereo 460 MB, until it is 16 kHz
const LARGEST = 20e6; // bytes of a wav, or of a file that does not tell its length, as of what was just recorded
const WHOLE = 90; // seconds of a wav that are read whole; of more a piece for each column
const PIECE = 1024; // samples of such a piece
const COLUMNS = 900;

// {seconds, rate, read(start, end)}: the samples of a stretch, or of a long one as many pieces evenly spread over it; the
// reason in words where it cannot be drawn.
export async function samplesOf(file, duration) {
  const wav = file.size > LARGEST ? await header(file) : null;
  if (wav) return { seconds: wav.frames / wav.rate, rate: Math.min(wav.rate, RATE), read: (start, end) => fromWav(file, wav, start, end) };
  if (Number.isFinite(duration) ? duration > LONGEST : file.size > LARGEST) return `No waveform is drawn of more than ${LONGEST / 60} minutes, but of wav; it is played and heard all the same.`;
  try {
    const decoded = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(await file.arrayBuffer());
    const channels = Array.from({ length: decoded.numberOfChannels }, (_, i) => decoded.getChannelData(i));
    const all = channels.length === 1 ? channels[0] : channels[0].map((one, i) => channels.reduce((sum, each) => sum + each[i], 0) / channels.length);
    return { seconds: decoded.duration, rate: RATE, read: async (start, end) => all.subarray(Math.round(start * RATE), Math.round(end * RATE)) };
  } catch {
    return "This browser cannot draw it; the service may hear it all the same.";
  }
}

// Where the samples of a RIFF file of PCM or floats lie, if it is one.
async function header(file) {
  const bytes = new DataView(await file.slice(0, 65536).arrayBuffer());
  const word = (at) => (at + 4 <= bytes.byteLength ? String.fromCharCode(...new Uint8Array(bytes.buffer, at, 4)) : "");
  if (word(0) !== "RIFF" || word(8) !== "WAVE") return null;
  const wav = {};
  for (let at = 12; at + 8 <= bytes.byteLength; ) {
    const size = bytes.getUint32(at + 4, true);
    if (word(at) === "fmt " && at + 24 <= bytes.byteLength) {
      const kind = bytes.getUint16(at + 8, true);
      wav.kind = kind === 0xfffe && at + 34 <= bytes.byteLength ? bytes.getUint16(at + 32, true) : kind; // extensible
      [wav.channels, wav.rate, wav.bits] = [bytes.getUint16(at + 10, true), bytes.getUint32(at + 12, true), bytes.getUint16(at + 22, true)];
    }
    if (word(at) === "data") {
      const known = (wav.kind === 1 && [8, 16, 24, 32].includes(wav.bits)) || (wav.kind === 3 && wav.bits === 32);
      wav.start = at + 8;
      wav.frames = Math.floor(Math.min(size || Infinity, file.size - wav.start) / ((wav.channels * wav.bits) / 8));
      return known && wav.channels && wav.rate && wav.frames > 0 ? wav : null;
    }
    at += 8 + size + (size % 2);
  }
  return null;
}

async function fromWav(file, wav, start, end) {
  if (end - start <= WHOLE) return piece(file, wav, start, Math.round((end - start) * Math.min(wav.rate, RATE)));
  const each = (end - start) / COLUMNS;
  const pieces = await Promise.all(Array.from({ length: COLUMNS }, (_, i) => piece(file, wav, start + (i + 0.5) * each - PIECE / RATE / 2, PIECE)));
  const all = new Float32Array(COLUMNS * PIECE);
  pieces.forEach((one, i) => all.set(one, i * PIECE));
  return all;
}

// `count` samples at 16 kHz, or what is less, from `start` on: the mean of what of the file falls into each, all channels.
async function piece(file, { start: head, channels, rate, bits, kind, frames }, start, count) {
  const step = Math.max(rate / RATE, 1);
  const first = Math.min(Math.max(Math.floor(start * rate), 0), frames);
  const last = Math.min(first + Math.ceil(count * step) + 1, frames);
  const width = (channels * bits) / 8;
  const bytes = new DataView(await file.slice(head + first * width, head + last * width).arrayBuffer());
  const value = { 8: (at) => bytes.getUint8(at) / 128 - 1, 16: (at) => bytes.getInt16(at, true) / 32768, 24: (at) => ((bytes.getUint16(at, true) | (bytes.getInt8(at + 2) << 16)) / 8388608), 32: kind === 3 ? (at) => bytes.getFloat32(at, true) : (at) => bytes.getInt32(at, true) / 2147483648 }[bits];
  return Float32Array.from({ length: Math.min(count, Math.max(Math.floor((last - first) / step), 0)) }, (_, i) => {
    const [from, to] = [Math.floor(i * step), Math.floor((i + 1) * step)];
    let sum = 0;
    for (let frame = from; frame < to; frame++) for (let c = 0; c < channels; c++) sum += value(frame * width + (c * bits) / 8);
    return sum / ((to - from) * channels);
  });
}
