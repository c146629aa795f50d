/* Figures to play with, over the closed forms of the book. No network, no library.
   A page asks for one by <div data-play="depth">; without this script the text inside of it stays. */
'use strict';
const play = (() => {
  // The closed forms: each is that of the library of the same name, and tests/test_play.py holds them together.
  const sum = xs => xs.reduce((a, b) => a + b, 0);
  const plainGrowth = (gain, depth) => gain**depth;
  const residualGrowth = (gain, depth) => (1 + gain)**depth;
  const formats = { float32: [3.4028234663852886e38, 1.1754943508222875e-38, 2**-23],   // largest, smallest normal, eps
                    bfloat16: [3.3895313892515355e38, 1.1754943508222875e-38, 2**-7],
                    float16: [65504, 6.103515625e-5, 2**-10] };
  const maxDepth = (format, c = 1) => c*(2/formats[format][2])**2;

  const chainShares = gains => gains.reduce((shares, g) => [...shares.map(s => s/(1 + g*g)), g*g/(1 + g*g)], [1]);
  const backwardFactor = (Math.PI/(Math.PI - 1))**2;
  const chainGradients = gains => [...gains].reverse().reduce(
    (growth, g) => [...growth, growth.at(-1)*(1 + backwardFactor*g*g)/(1 + g*g)], [1]).reverse();
  const additions = { 'the same in every block': (b, k, L) => b, 'b/√L': (b, k, L) => b/Math.sqrt(L), 'b/√k': (b, k, L) => b/Math.sqrt(k) };
  function gainsOf(start, b, L, normed) {
    const gains = [];
    let total = 1;   // second moment of the sum, that of the stem being 1
    for (let k = 1; k <= L; k++) {
      const added = additions[start](b, k, L);
      gains.push(added/Math.sqrt(total));
      if (!normed) total += added*added;
    }
    return gains;
  }

  const tapCounts = (kernel, stride) => Array.from({ length: stride }, (_, phase) =>
    Array.from({ length: kernel }, (_, i) => i).filter(i => i % stride === phase).length);
  const softIou = (probs, target, eps = 0) => {
    const inter = sum(probs.map((p, i) => p*target[i])), total = sum(probs) + sum(target), den = total - inter + eps;
    return den < 1.1754943508222875e-38 ? 1 : (inter + eps)/den;
  };

  // What a figure is made of
  let count = 0;
  const make = (tag, attributes = {}, ...children) => {
    const e = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) e.setAttribute(name, value);
    e.append(...children);
    return e;
  };
  const draw = (tag, attributes = {}, text) => {
    const e = document.createElementNS('http://www.w3.org/2000/svg', tag);
    for (const [name, value] of Object.entries(attributes)) e.setAttribute(name, value);
    if (text !== undefined) e.textContent = text;
    return e;
  };
  const short = x => x === 0 ? '0' : Math.abs(x) >= 1e4 || Math.abs(x) < 1e-3 ? x.toExponential(1) : String(Number(x.toPrecision(3)));

  function controls(fields, update) {
    const box = make('div', { class: 'play-controls' }), values = {};
    for (const [name, field] of Object.entries(fields)) {
      const id = `play-${++count}`, shown = make('output', { for: id });
      const input = field.options ? make('select', { id }, ...field.options.map(o => make('option', { value: o }, o)))
                                  : make('input', { id, type: 'range', min: field.min, max: field.max, step: field.step });
      input.value = field.value;
      const read = () => {
        values[name] = field.options ? input.value : field.log ? 10**Number(input.value) : Number(input.value);
        if (field.log && field.whole) values[name] = Math.round(values[name]);
        if (!field.options) {
          shown.textContent = short(values[name]);
          input.setAttribute('aria-valuetext', short(values[name]));
        }
      };
      read();
      input.addEventListener('input', () => { read(); update(values); });
      box.append(make('div', {}, make('label', { for: id }, field.label), input, ...(field.options ? [] : [shown])));
    }
    return [box, values];
  }

  function picture(what, width = 560, height = 260) {
    return draw('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': what });
  }
  function axes(svg, [x0, x1, y0, y1], across, along) {
    svg.append(draw('path', { d: `M${x0} ${y0}V${y1}H${x1}`, class: 'play-axis' }),
               draw('text', { x: (x0 + x1)/2, y: y1 + 34, class: 'play-middle' }, across),
               draw('text', { x: 12, y: (y0 + y1)/2, class: 'play-middle', transform: `rotate(-90 12 ${(y0 + y1)/2})` }, along));
  }
  const tick = (svg, x, y, text, kind = 'play-middle') => svg.append(draw('text', { x, y, class: kind }, text));

  function figure(root, what, fields, render) {
    const svg = picture(what), said = make('p', { class: 'play-said', role: 'status' });
    const update = values => { svg.replaceChildren(); said.textContent = render(svg, values); };
    const [box, values] = controls(fields, update);
    root.replaceChildren(box, svg, said);
    update(values);
  }

  // Depth and variance
  function depth(root) {
    const fields = {
      kind: { label: 'network', options: ['residual: x + Wx', 'plain: Wx'], value: 'residual: x + Wx' },
      depth: { label: 'depth L', min: 0, max: 3, step: .05, log: true, whole: true, value: 2 },
      gain: { label: 'fan-in × variance', min: -8, max: 1, step: .05, log: true, value: -2 } };
    figure(root, 'Root of the second moment over depth, with the limits of number formats', fields, (svg, v) => {
      const [x0, x1, y0, y1] = [58, 440, 12, 212], top = 45;
      const growth = v.kind.startsWith('plain') ? plainGrowth : residualGrowth;
      const log = k => k*Math.log10(growth(v.gain, 1))/2;
      const y = e => y1 - (Math.max(-top, Math.min(top, e)) + top)/(2*top)*(y1 - y0);
      axes(svg, [x0, x1, y0, y1], 'block', 'signal (rms)');
      for (const e of [-40, -20, 0, 20, 40]) tick(svg, x0 - 6, y(e) + 4, `1e${e}`, 'play-end');
      tick(svg, x0, y1 + 16, '0'); tick(svg, x1, y1 + 16, v.depth);
      for (const [name, [largest, smallest]] of Object.entries(formats)) if (name !== 'bfloat16') for (const limit of [largest, smallest]) {
        const at = y(Math.log10(limit));
        svg.append(draw('path', { d: `M${x0} ${at}H${x1}`, class: 'play-limit' }));
        tick(svg, x1 + 6, at + 4, name === 'float32' ? 'float32, bfloat16' : name, 'play-start');
      }
      const points = Array.from({ length: 101 }, (_, i) => `${x0 + (x1 - x0)*i/100} ${y(log(v.depth*i/100))}`);
      svg.append(draw('polyline', { points: points.join(' '), class: 'play-line' }));
      const end = log(v.depth), rms = Math.sqrt(growth(v.gain, v.depth));
      const out = Object.keys(formats).filter(f => end > Math.log10(formats[f][0]) || end < Math.log10(formats[f][1]));
      const lost = v.kind.startsWith('plain') ? [] : Object.keys(formats).filter(f => v.depth > maxDepth(f, v.gain*v.depth));
      const size = rms > 0 && isFinite(rms) ? short(rms) : `1e${Math.round(end)}`;
      return `After ${v.depth} blocks the signal is ${size} times as large.` +
        (out.length ? ` It leaves the range of ${out.join(', ')}.` : '') +
        (lost.length ? ` A typical addition is rounded away in ${lost.join(', ')}.` : '');
    });
  }

  // Gains and placement
  function shares(root) {
    const fields = {
      start: { label: 'a block adds', options: Object.keys(additions), value: 'the same in every block' },
      placement: { label: 'norms on the main path', options: ['after every block', 'none'], value: 'after every block' },
      size: { label: 'size b', min: .05, max: 2, step: .05, value: 1 },
      depth: { label: 'depth L', min: 2, max: 60, step: 1, value: 20 } };
    figure(root, 'Share and squared gradient of the stem and of every block', fields, (svg, v) => {
      const gains = gainsOf(v.start, v.size, v.depth, v.placement !== 'none');
      const parts = chainShares(gains), gradient = chainGradients(gains), [x0, x1, y0, y1] = [58, 500, 12, 212];
      axes(svg, [x0, x1, y0, y1], 'block (0: the stem)', 'share of the sum');
      const top = Math.max(...parts), steep = Math.max(Math.log10(gradient[0]), 1), step = (x1 - x0)/parts.length;
      parts.forEach((s, k) => svg.append(draw('rect', { x: x0 + k*step + .1*step, width: .8*step,
        y: y1 - (y1 - y0)*s/top, height: (y1 - y0)*s/top, class: 'play-bar' })));
      const points = gradient.map((g, k) => `${x0 + (k + .5)*step} ${y1 - (y1 - y0)*Math.log10(g)/steep}`);
      svg.append(draw('polyline', { points: points.join(' '), class: 'play-line' }));
      tick(svg, x0 - 6, y0 + 8, short(top), 'play-end'); tick(svg, x0 - 6, y1, '0', 'play-end');
      tick(svg, x1 + 6, y0 + 8, `1e${short(steep)}`, 'play-start'); tick(svg, x1 + 6, y1, '1', 'play-start');
      tick(svg, x0, y1 + 16, '0'); tick(svg, x1, y1 + 16, v.depth);
      return `Share of the stem ${short(parts[0])}, of the last block ${short(parts.at(-1))} (bars). ` +
        `The squared gradient at the stem is ${short(gradient[0])} times that at the end (line, logarithmic).`;
    });
  }

  // Taps
  function taps(root) {
    const fields = { kernel: { label: 'kernel size', min: 1, max: 8, step: 1, value: 3 },
                     stride: { label: 'stride', min: 1, max: 4, step: 1, value: 2 } };
    figure(root, 'Number of taps that meet in each pixel behind a transposed convolution', fields, (svg, v) => {
      const counts = tapCounts(v.kernel, v.stride), n = 12, side = 20, x0 = 160;
      const most = Math.max(...counts)**2, least = Math.min(...counts)**2;
      for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) {
        const c = counts[i % v.stride]*counts[j % v.stride], x = x0 + j*side, y = 8 + i*side;
        svg.append(draw('rect', { x, y, width: side, height: side, class: 'play-cell', 'fill-opacity': .1 + .6*c/most }),
                   draw('text', { x: x + side/2, y: y + 14, class: 'play-middle' }, c));
      }
      const how = most === least ? 'All pixels see as many: no checkerboard from the count.' :
        least ? `The second moment differs by a factor of ${short(most/least)} between neighbours: a checkerboard.` :
        'Some pixels see none at all: holes.';
      return `Along one axis the phases see ${counts.join(', ')} taps. ${how} ` +
        'A convolution with this stride does the same to the gradient on its way back.';
    });
  }

  // Soft IoU over a mask that one can draw
  function iou(root) {
    const side = 8, mask = Array.from({ length: side*side }, (_, i) => +(i % side > 2 && i % side < 6 && i >= 24 && i < 48));
    const said = make('p', { class: 'play-said', role: 'status' });
    const grid = make('div', { class: 'play-mask', role: 'group',
      'aria-label': 'The true mask: arrow keys move, space draws or wipes a pixel' });
    const cells = mask.map((on, i) => make('button', { type: 'button', 'aria-pressed': on ? 'true' : 'false',
      tabindex: i ? -1 : 0, 'aria-label': `row ${Math.floor(i/side) + 1}, column ${i % side + 1}` }));
    const fields = { inside: { label: 'probability on the object', min: 0, max: 1, step: .01, value: .8 },
                     outside: { label: 'probability elsewhere', min: 0, max: 1, step: .01, value: .1 },
                     eps: { label: 'smoothing ε, pixels', min: 0, max: 5, step: .01, value: 1 } };
    const update = v => {
      const p = mask.map(t => t ? v.inside : v.outside), area = sum(mask);
      said.textContent = `${area} of ${side*side} pixels are object. Soft IoU ${softIou(p, mask, v.eps).toFixed(3)}, ` +
        `without smoothing ${softIou(p, mask).toFixed(3)}.` + (area ? '' : ' The mask is empty: without smoothing it is 0 unless all probabilities are.');
    };
    const [box, values] = controls(fields, update);
    const toggle = i => { mask[i] = 1 - mask[i]; cells[i].setAttribute('aria-pressed', mask[i] ? 'true' : 'false'); update(values); };
    const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -side, ArrowDown: side };
    cells.forEach((cell, i) => {
      cell.addEventListener('click', () => toggle(i));
      cell.addEventListener('keydown', e => {
        if (!(e.key in moves)) return;
        e.preventDefault();
        const to = i + moves[e.key], sameRow = Math.abs(moves[e.key]) > 1 || Math.floor(to/side) === Math.floor(i/side);
        if (!cells[to] || !sameRow) return;
        cell.tabIndex = -1; cells[to].tabIndex = 0; cells[to].focus();
      });
    });
    grid.append(...cells);
    const wipe = make('button', { type: 'button', class: 'play-wipe' }, 'Empty the mask');
    wipe.addEventListener('click', () => mask.forEach((on, i) => on && toggle(i)));
    root.replaceChildren(box, make('div', { class: 'play-row' }, grid, wipe), said);
    update(values);
  }

  const figures = { depth, shares, taps, iou };
  addEventListener('DOMContentLoaded', () => {
    for (const root of document.querySelectorAll('[data-play]')) figures[root.dataset.play]?.(root);
  });
  return { plainGrowth, residualGrowth, maxDepth, formats, chainShares, chainGradients, gainsOf, tapCounts, softIou };
})();
