// A waveform on a canvas: for each pixel the least and the greatest sample.

// Draws over the left `share` of the canvas, as high as `loudest` asks at least; answers how loud the loudest is.
export function drawWave(canvas, samples, share = 1, loudest = 1e-4) {
  const { width, height, context } = fitted(canvas);
  context.fillStyle = getComputedStyle(canvas).color;
  const step = samples.length / (width * share);
  loudest = samples.reduce((most, one) => Math.max(most, Math.abs(one)), loudest);
  for (let x = 0; x < Math.round(width * share); x++) {
    let low = 0;
    let high = 0;
    for (let i = Math.floor(x * step); i < Math.max((x + 1) * step, Math.floor(x * step) + 1); i++) {
      if (samples[i] < low) low = samples[i];
      if (samples[i] > high) high = samples[i];
    }
    const top = (height / 2) * (1 - (0.95 * high) / loudest);
    const bottom = (height / 2) * (1 - (0.95 * low) / loudest);
    context.fillRect(x, top, 1, Math.max(bottom - top, 1));
  }
  return loudest;
}

// A canvas with a pixel for each of the screen's, empty.
export function fitted(canvas) {
  const box = canvas.getBoundingClientRect();
  const width = (canvas.width = Math.max(Math.round(box.width * devicePixelRatio), 1));
  const height = (canvas.height = Math.max(Math.round(box.height * devicePixelRatio), 1));
  return { width, height, context: canvas.getContext("2d") };
}
