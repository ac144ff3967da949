// A spectrogram on a canvas: 32 ms Hann windows, decibels below the loudest as colours, 0 Hz at the bottom.
import { fitted } from "./wave.js";

const SIZE = 512; // samples of a window
const HIGHEST = 8000; // Hz at the top
const RANGE = 80; // decibels from the darkest to the brightest
const STOPS = [[8, 10, 32], [60, 20, 110], [150, 40, 120], [225, 85, 75], [250, 165, 60], [252, 250, 190]];
const HANN = Float32Array.from({ length: SIZE }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / SIZE));

// As `drawWave`, of samples at a rate, which may be below the 16 kHz that are drawn; `loudest` in decibels.
export function drawSpectrogram(canvas, samples, rate, share = 1, loudest = -120) {
  const fit = fitted(canvas);
  const [width, height, context] = [Math.max(Math.round(fit.width * share), 1), fit.height, fit.context];
  const columns = Math.min(width, 900);
  const power = Array.from({ length: columns }, (_, x) => decibels(samples, Math.round((x / columns) * samples.length - SIZE / 2)));
  loudest = power.reduce((most, column) => column.reduce((a, b) => Math.max(a, b), most), loudest);
  const image = context.createImageData(width, height);
  for (let x = 0; x < width; x++) {
    const column = power[Math.floor((x / width) * columns)];
    for (let y = 0; y < height; y++) {
      const level = column[Math.floor((1 - (y + 1) / height) * (HIGHEST / rate) * SIZE)] ?? -Infinity;
      image.data.set(colour(1 - (loudest - level) / RANGE), 4 * (y * width + x));
    }
  }
  context.putImageData(image, 0, 0);
  return loudest;
}

function colour(share) {
  const at = Math.min(Math.max(share, 0), 0.9999) * (STOPS.length - 1);
  const [from, to] = [STOPS[Math.floor(at)], STOPS[Math.floor(at) + 1]];
  return [...from.map((one, i) => one + (to[i] - one) * (at % 1)), 255];
}

function decibels(samples, start) {
  const real = Float32Array.from(HANN, (weight, i) => weight * (samples[start + i] ?? 0));
  const imaginary = new Float32Array(SIZE);
  transform(real, imaginary);
  return Float32Array.from({ length: SIZE / 2 }, (_, i) => 10 * Math.log10(real[i] ** 2 + imaginary[i] ** 2 + 1e-12));
}

// The fast Fourier transform in place, radix 2.
function transform(real, imaginary) {
  for (let i = 1, j = 0; i < SIZE; i++) {
    let bit = SIZE >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) [real[i], real[j]] = [real[j], real[i]]; // the imaginary parts are zero
  }
  for (let length = 2; length <= SIZE; length *= 2) {
    for (let k = 0; k < length / 2; k++) {
      const angle = (-2 * Math.PI * k) / length;
      const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
      for (let i = k; i < SIZE; i += length) {
        const j = i + length / 2;
        const re = real[j] * cos - imaginary[j] * sin;
        const im = real[j] * sin + imaginary[j] * cos;
        [real[j], imaginary[j]] = [real[i] - re, imaginary[i] - im];
        [real[i], imaginary[i]] = [real[i] + re, imaginary[i] + im];
      }
    }
  }
}
