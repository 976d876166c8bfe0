// The moving picture: true trajectories as solid lines and spheres, predicted ones as dashed lines and ghosts.
// Canvas 2D with a small perspective camera; everything is sorted by depth and drawn back to front.
"use strict";

(() => {
  const root = document.getElementById("scene");
  if (!root) return;

  const data = JSON.parse(document.getElementById("scene-data").textContent);
  const find = (name) => root.querySelector(`[data-part="${name}"]`);
  const canvas = find("stage");
  const strip = find("strip");
  const slider = find("time");
  const playButton = find("play");
  const pen = canvas.getContext("2d");
  const stripPen = strip.getContext("2d");

  const LOOP_SECONDS = 9;
  const REST_SECONDS = 1.2;
  const SPIN = 0.07; // radians per second while nobody has turned the scene
  const DISTANCE = 4.2; // of the camera, in scene radii
  const HOME = { azimuth: 0.6, elevation: 0.34, zoom: 1 };
  const PARTICLES = ["--run-0", "--run-1", "--run-2", "--run-3", "--run-4", "--run-5"];

  const view = { ...HOME, spins: true };
  const play = { run: 0, sample: 0, time: 0, rest: 0, speed: 1, on: false, visible: true, last: null, pending: false, handle: 0 };
  let colours = {};
  let sprites = {};
  let shown = null;
  let frames = 0;

  // ---- Data -------------------------------------------------------------------------------------------------------

  const decode = (text, sample) => {
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    const levels = new DataView(bytes.buffer);
    const path = new Float32Array(bytes.length / 2);
    for (let k = 0; k < path.length; k++) {
      const level = levels.getInt16(2 * k, true);
      path[k] = level === -32768 ? NaN : (level / 32767) * sample.reach;
    }
    return path; // [F, N, 3], in scene radii around the centre
  };

  // Slopes for a smooth curve through the recorded states, which may be unevenly spaced in time.
  const slopesOf = (path, times, width) => {
    const slopes = new Float32Array(path.length);
    const last = times.length - 1;
    const secant = (f, c) => (path[(f + 1) * width + c] - path[f * width + c]) / (times[f + 1] - times[f]);
    for (let c = 0; c < width; c++) {
      for (let f = 1; f < last; f++) {
        const before = times[f] - times[f - 1];
        const after = times[f + 1] - times[f];
        slopes[f * width + c] = (secant(f - 1, c) * after + secant(f, c) * before) / (before + after);
      }
      if (last === 0) continue;
      const ends = last > 1;
      slopes[c] = ends ? 1.5 * secant(0, c) - 0.5 * slopes[width + c] : secant(0, c);
      slopes[last * width + c] = ends ? 1.5 * secant(last - 1, c) - 0.5 * slopes[(last - 1) * width + c] : secant(0, c);
    }
    return slopes;
  };

  const frameAt = (times, t) => {
    let f = 0;
    while (f < times.length - 2 && times[f + 1] <= t) f++;
    return f;
  };

  const stateAt = (curve, times, t, out) => {
    const { path, slopes, width } = curve;
    if (times.length === 1) return void out.set(path);
    const f = frameAt(times, t);
    const h = times[f + 1] - times[f];
    const u = Math.min(1, Math.max(0, (t - times[f]) / h));
    const a = (1 + 2 * u) * (1 - u) * (1 - u);
    const b = u * (1 - u) * (1 - u) * h;
    const c = u * u * (3 - 2 * u);
    const d = u * u * (u - 1) * h;
    const here = f * width;
    const there = here + width;
    for (let k = 0; k < width; k++) {
      const known = u === 0 ? path[here + k] : u === 1 ? path[there + k] : null;
      out[k] = known ?? a * path[here + k] + b * slopes[here + k] + c * path[there + k] + d * slopes[there + k];
    }
  };

  const denseTimes = (times, particles) => {
    const parts = Math.max(1, Math.min(16, Math.round(900 / (particles * times.length))));
    const dense = [];
    for (let f = 0; f + 1 < times.length; f++)
      for (let k = 0; k < parts; k++) dense.push(times[f] + ((times[f + 1] - times[f]) * k) / parts);
    dense.push(times.at(-1));
    return dense;
  };

  const curveOf = (text, sample, times) => {
    const path = decode(text, sample);
    const width = path.length / times.length;
    const curve = { path, width, slopes: slopesOf(path, times, width) };
    const particles = width / 3;
    const dense = denseTimes(times, particles);
    curve.dense = new Float32Array(dense.length * width);
    dense.forEach((t, m) => stateAt(curve, times, t, curve.dense.subarray(m * width, (m + 1) * width)));
    curve.now = new Float32Array(width);
    return { curve, dense, particles };
  };

  const load = () => {
    const run = data.runs[play.run];
    const sample = run.samples[play.sample];
    const { curve: truth, dense, particles } = curveOf(data.paths[sample.true], sample, run.times);
    const { curve: guess } = curveOf(data.paths[sample.predicted], sample, run.times);
    shown = { run, sample, truth, guess, dense, particles, ...extentOf(truth.path, guess.path) };
    play.time = Math.min(play.time, run.times.at(-1));
    slider.min = run.times[0];
    slider.max = run.times.at(-1);
    slider.step = "any";
  };

  // How far the motion reaches sideways and up; a prediction may widen the view a little, not blow it up.
  const extentOf = (truth, guess) => {
    let [side, low, high] = [1e-6, Infinity, -Infinity];
    const grow = (path, most) => {
      for (let k = 0; k < path.length; k += 3) {
        const reach = Math.hypot(path[k], path[k + 1]);
        if (!(reach < most) || !(Math.abs(path[k + 2]) < most)) continue;
        side = Math.max(side, reach);
        low = Math.min(low, path[k + 2]);
        high = Math.max(high, path[k + 2]);
      }
    };
    grow(truth, Infinity);
    grow(guess, 1.3);
    if (!(low <= high)) [low, high] = [-1, 1];
    return { side, high, low: low - 0.08 * Math.max(high - low, side) }; // the floor lies a little below the motion
  };

  // ---- Colours ----------------------------------------------------------------------------------------------------

  const readColours = () => {
    const style = getComputedStyle(root);
    const names = ["--card", "--ink", "--muted", "--shade", "--positive", "--negative", "--neutral", ...PARTICLES];
    colours = Object.fromEntries(names.map((name) => [name, style.getPropertyValue(name).trim()]));
    sprites = {};
  };

  const colourName = (particle) => {
    const charge = shown.sample.charge;
    if (charge) return charge[particle] > 0 ? "--positive" : charge[particle] < 0 ? "--negative" : "--neutral";
    return shown.particles <= PARTICLES.length ? PARTICLES[particle] : PARTICLES[0];
  };

  const mix = (colour, other, share) => {
    const part = (text, k) => parseInt(text.slice(1 + 2 * k, 3 + 2 * k), 16);
    const blend = [0, 1, 2].map((k) => Math.round(part(colour, k) * (1 - share) + part(other, k) * share));
    return `rgb(${blend.join(" ")})`;
  };

  // A sphere lit from the upper left, drawn once per colour and scaled afterwards.
  const sprite = (name) => {
    if (sprites[name]) return sprites[name];
    const image = document.createElement("canvas");
    image.width = image.height = 128;
    const brush = image.getContext("2d");
    const light = brush.createRadialGradient(46, 40, 2, 62, 62, 66);
    light.addColorStop(0, mix(colours[name], "#ffffff", 0.82));
    light.addColorStop(0.18, mix(colours[name], "#ffffff", 0.42));
    light.addColorStop(0.55, colours[name]);
    light.addColorStop(1, mix(colours[name], "#000000", 0.5));
    brush.fillStyle = light;
    brush.beginPath();
    brush.arc(64, 64, 62, 0, 2 * Math.PI);
    brush.fill();
    return (sprites[name] = image);
  };

  // ---- Camera -----------------------------------------------------------------------------------------------------

  const camera = () => {
    const [cosA, sinA] = [Math.cos(view.azimuth), Math.sin(view.azimuth)];
    const [cosE, sinE] = [Math.cos(view.elevation), Math.sin(view.elevation)];
    const { side, low, high } = shown;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    const middle = (low + high) / 2;
    const tall = side * Math.abs(sinE) + ((high - low) / 2) * cosE;
    const scale = view.zoom * Math.min((0.44 * width) / side, (0.48 * height) / Math.max(tall, 0.2 * side));
    return (x, y, z) => {
      const across = x * cosA - y * sinA;
      const away = x * sinA + y * cosA;
      const up = z - middle;
      const depth = away * cosE - up * sinE;
      const near = DISTANCE / Math.max(0.3, DISTANCE + depth);
      return {
        x: width / 2 + across * scale * near,
        y: height / 2 - (away * sinE + up * cosE) * scale * near,
        size: scale * near,
        depth,
      };
    };
  };

  // What lies further away fades a little.
  const haze = (depth) => Math.max(0.5, Math.min(1, 0.82 - 0.3 * depth));

  const niceStep = (rough) => {
    const power = 10 ** Math.floor(Math.log10(rough));
    return power * [1, 2, 5, 10].find((m) => m * power >= rough * 0.999);
  };

  // ---- Drawing ----------------------------------------------------------------------------------------------------

  const drawFloor = (project) => {
    const { sample, side, low: floor } = shown;
    const reach = 1.12 * side;
    const step = niceStep((reach * sample.radius) / 4) / sample.radius;
    pen.lineWidth = 1;
    pen.strokeStyle = colours["--muted"];
    for (let k = -Math.floor(reach / step); k * step <= reach; k++) {
      const half = Math.sqrt(Math.max(0, reach * reach - (k * step) ** 2));
      pen.globalAlpha = 0.3 * (1 - Math.abs(k * step) / reach) + 0.05;
      stroke([project(k * step, -half, floor), project(k * step, half, floor)]);
      stroke([project(-half, k * step, floor), project(half, k * step, floor)]);
    }
    pen.globalAlpha = 0.8;
    pen.fillStyle = colours["--muted"];
    pen.font = "12px system-ui, sans-serif";
    pen.textAlign = "center";
    const rim = 1.08 * reach;
    label("x", project(rim, 0, floor));
    label("y", project(0, rim, floor));
    find("grid").textContent = `${Number((step * sample.radius).toPrecision(2))}`;
  };

  const label = (text, at) => pen.fillText(text, at.x, at.y + 4);

  const stroke = (points) => {
    pen.beginPath();
    let down = false;
    for (const point of points) {
      const ok = Number.isFinite(point.x) && Number.isFinite(point.y);
      if (ok && down) pen.lineTo(point.x, point.y);
      else if (ok) pen.moveTo(point.x, point.y);
      down = ok;
    }
    pen.stroke();
  };

  const drawShadows = (project, radius) => {
    pen.fillStyle = "#000000";
    for (let n = 0; n < shown.particles; n++) {
      const [x, y] = shown.truth.now.subarray(3 * n);
      const at = project(x, y, shown.low);
      if (!Number.isFinite(at.x)) continue;
      const wide = 1.15 * radius * at.size;
      pen.globalAlpha = Number(colours["--shade"]);
      pen.beginPath();
      pen.ellipse(at.x, at.y, wide, wide * Math.max(0.08, Math.abs(Math.sin(view.elevation))), 0, 0, 2 * Math.PI);
      pen.fill();
    }
  };

  const trailStart = () => (shown.run.bonds ? play.time - 0.2 * (shown.dense.at(-1) - shown.dense[0]) : -Infinity);

  // The way travelled so far, ending exactly at the particle.
  const trail = (curve, n, project) => {
    const points = [];
    const from = trailStart();
    for (let m = 0; m < shown.dense.length && shown.dense[m] < play.time; m++) {
      if (shown.dense[m] < from) continue;
      const k = m * curve.width + 3 * n;
      points.push({ ...project(curve.dense[k], curve.dense[k + 1], curve.dense[k + 2]), time: shown.dense[m] });
    }
    points.push({ ...project(...curve.now.subarray(3 * n, 3 * n + 3)), time: play.time });
    return points;
  };

  const drawFuture = (project) => {
    if (shown.run.bonds) return;
    const { truth, dense, particles } = shown;
    pen.lineWidth = 1.2;
    pen.globalAlpha = 0.26;
    for (let n = 0; n < particles; n++) {
      pen.strokeStyle = colours[colourName(n)];
      const ahead = [project(...truth.now.subarray(3 * n, 3 * n + 3))];
      for (let m = 0; m < dense.length; m++) {
        const k = m * truth.width + 3 * n;
        if (dense[m] > play.time) ahead.push(project(truth.dense[k], truth.dense[k + 1], truth.dense[k + 2]));
      }
      stroke(ahead);
    }
  };

  const drawGuessTrails = (project) => {
    pen.lineWidth = 1.8;
    pen.globalAlpha = 0.85;
    pen.setLineDash([5, 5]);
    for (let n = 0; n < shown.particles; n++) {
      pen.strokeStyle = colours[colourName(n)];
      stroke(trail(shown.guess, n, project));
    }
    pen.setLineDash([]);
  };

  const drawArrows = (project) => {
    const { run, sample, truth, particles } = shown;
    const window = run.times.at(-1) - run.times[0] || 1;
    const fade = 1 - (play.time - run.times[0]) / (0.12 * window);
    if (fade <= 0 || !sample.velocity.length) return;
    pen.strokeStyle = pen.fillStyle = colours["--ink"];
    pen.lineWidth = 1.6;
    pen.globalAlpha = 0.8 * fade;
    for (let n = 0; n < particles; n++) {
      const [x, y, z] = truth.path.subarray(3 * n, 3 * n + 3);
      const [u, v, w] = sample.velocity[n].map((c) => 0.3 * shown.side * c);
      const [tail, head] = [project(x, y, z), project(x + u, y + v, z + w)];
      stroke([tail, head]);
      arrowHead(head, Math.atan2(head.y - tail.y, head.x - tail.x));
    }
  };

  const arrowHead = (at, angle) => {
    if (!Number.isFinite(at.x)) return;
    pen.beginPath();
    for (const turn of [0, 2.6, -2.6]) pen.lineTo(at.x + 6 * Math.cos(angle + turn), at.y + 6 * Math.sin(angle + turn));
    pen.fill();
  };

  // A piece of tube: a halo that separates crossing tubes, the tube, and light along its middle.
  const tube = (a, b, colour, strength) => {
    const width = Math.max(1.6, 0.34 * ballRadius() * b.size);
    const line = (style, lineWidth, alpha, cap) => {
      pen.strokeStyle = style;
      pen.lineWidth = lineWidth;
      pen.globalAlpha = alpha;
      pen.lineCap = cap;
      pen.beginPath();
      pen.moveTo(a.x, a.y);
      pen.lineTo(b.x, b.y);
      pen.stroke();
    };
    line(colours["--card"], width + 3, 1, "butt");
    line(mix(colour, colours["--card"], 1 - strength), width, 1, "round");
    line("#ffffff", width * 0.3, 0.35 * strength, "butt");
    pen.lineCap = "butt";
  };

  const ballRadius = () => 0.062 * Math.cbrt(5 / Math.max(5, shown.particles)) * shown.side;

  const ball = (at, radius, name, ghost) => {
    const r = radius * at.size;
    pen.globalAlpha = ghost ? 0.3 : 1;
    pen.drawImage(sprite(name), at.x - r, at.y - r, 2 * r, 2 * r);
    if (!ghost) return;
    pen.globalAlpha = 0.95;
    pen.strokeStyle = colours[name];
    pen.lineWidth = 1.4;
    pen.setLineDash([3, 3]);
    pen.beginPath();
    pen.arc(at.x, at.y, r, 0, 2 * Math.PI);
    pen.stroke();
    pen.setLineDash([]);
  };

  const rod = (a, b, ghost) => {
    pen.globalAlpha = ghost ? 0.6 : 1;
    pen.strokeStyle = colours[ghost ? "--muted" : "--ink"];
    pen.lineWidth = ghost ? 1.4 : 2.6;
    if (ghost) pen.setLineDash([4, 4]);
    stroke([a, b]);
    pen.setLineDash([]);
  };

  const addTrail = (items, n, project) => {
    const points = trail(shown.truth, n, project);
    const colour = colours[colourName(n)];
    const window = shown.dense.at(-1) - shown.dense[0] || 1;
    for (let k = 1; k < points.length; k++) {
      const [a, b] = [points[k - 1], points[k]];
      const fresh = 0.4 + 0.6 * Math.exp((-2.5 * (play.time - b.time)) / window);
      items.push({ depth: (a.depth + b.depth) / 2, draw: () => tube(a, b, colour, fresh * haze(b.depth)) });
    }
  };

  const addBodies = (items, project, radius) => {
    const places = (curve) =>
      Array.from({ length: shown.particles }, (_, n) => project(...curve.now.subarray(3 * n, 3 * n + 3)));
    for (const [at, ghost] of [[places(shown.truth), false], [places(shown.guess), true]]) {
      at.forEach((place, n) => {
        const size = ghost ? 1.12 * radius : radius;
        items.push({ depth: place.depth - radius, draw: () => ball(place, size, colourName(n), ghost) });
      });
      for (const [i, j] of shown.run.bonds ?? [])
        items.push({ depth: (at[i].depth + at[j].depth) / 2, draw: () => rod(at[i], at[j], ghost) });
    }
  };

  const fitPixels = (target, brush) => {
    const dense = Math.min(2, devicePixelRatio || 1);
    const [width, height] = [target.clientWidth, target.clientHeight];
    if (target.width !== Math.round(width * dense)) target.width = Math.round(width * dense);
    if (target.height !== Math.round(height * dense)) target.height = Math.round(height * dense);
    brush.setTransform(dense, 0, 0, dense, 0, 0);
    brush.clearRect(0, 0, width, height);
    return [width, height];
  };

  const draw = () => {
    play.pending = false;
    fitPixels(canvas, pen);
    stateAt(shown.truth, shown.run.times, play.time, shown.truth.now);
    stateAt(shown.guess, shown.run.times, play.time, shown.guess.now);
    const project = camera();
    const radius = ballRadius();
    pen.lineJoin = "round";
    drawFloor(project);
    drawShadows(project, radius);
    drawFuture(project);
    const items = [];
    for (let n = 0; n < shown.particles; n++) addTrail(items, n, project);
    items.sort((a, b) => b.depth - a.depth);
    const drawable = (item) => Number.isFinite(item.depth);
    items.filter(drawable).forEach((item) => item.draw());
    drawGuessTrails(project);
    drawArrows(project);
    const bodies = [];
    addBodies(bodies, project, radius);
    bodies.sort((a, b) => b.depth - a.depth);
    bodies.filter(drawable).forEach((item) => item.draw());
    pen.globalAlpha = 1;
    drawStrip();
    readOut();
    root.dataset.frames = ++frames;
  };

  // ---- Error over time, above the slider --------------------------------------------------------------------------

  const format = (value) => {
    if (value === null || value === undefined || !Number.isFinite(value)) return "not finite";
    if (value === 0) return "0";
    if (value < 0.00095) return value.toExponential(1).replace("e+", "e");
    return value < 1 ? value.toFixed(4) : value.toPrecision(3);
  };

  const nearestFrame = (times, t) => {
    const f = frameAt(times, t);
    return f + 1 < times.length && times[f + 1] - t <= t - times[f] ? f + 1 : f;
  };

  const readOut = () => {
    const { run, sample } = shown;
    const f = nearestFrame(run.times, play.time);
    const time = play.time.toFixed(run.times.at(-1) < 10 ? 2 : 1);
    const error = format(sample.error[f]);
    find("clock").textContent = time;
    find("error").textContent = error;
    slider.value = play.time;
    slider.setAttribute("aria-valuetext", `time ${time}, error ${error}`);
  };

  const drawStrip = () => {
    const [width, height] = fitPixels(strip, stripPen);
    const inset = 8; // half a slider thumb
    const { times } = shown.run;
    const across = (t) => inset + ((t - times[0]) / (times.at(-1) - times[0] || 1)) * (width - 2 * inset);
    const all = data.runs.filter((run) => run.samples[play.sample]);
    const usable = all.flatMap((run) => run.samples[play.sample].error).filter((e) => e !== null && e > 0);
    if (usable.length) {
      const high = Math.log10(Math.max(...usable));
      const low = Math.max(Math.log10(Math.min(...usable)), high - 4);
      const up = (error) => height - 5 - ((Math.max(low, Math.log10(error)) - low) / (high - low || 1)) * (height - 12);
      for (const run of all) stripLine(run, across, up, run === shown.run);
    }
    stripPen.globalAlpha = 0.5;
    stripPen.strokeStyle = colours["--muted"];
    stripPen.lineWidth = 1;
    stripPen.beginPath();
    stripPen.moveTo(across(play.time), 2);
    stripPen.lineTo(across(play.time), height);
    stripPen.stroke();
  };

  const stripLine = (run, across, up, chosen) => {
    const colour = colours[PARTICLES[run.style % PARTICLES.length]];
    stripPen.strokeStyle = stripPen.fillStyle = colour;
    stripPen.globalAlpha = chosen ? 1 : 0.35;
    stripPen.lineWidth = chosen ? 1.8 : 1.2;
    const points = run.times
      .map((t, f) => [across(t), run.samples[play.sample].error[f]])
      .filter(([, error]) => error !== null && error > 0)
      .map(([x, error]) => [x, up(error)]);
    stripPen.beginPath();
    points.forEach(([x, y]) => stripPen.lineTo(x, y));
    stripPen.stroke();
    if (!chosen || points.length > 60) return;
    for (const [x, y] of points) {
      stripPen.beginPath();
      stripPen.arc(x, y, 2.2, 0, 2 * Math.PI);
      stripPen.fill();
    }
  };

  // ---- Time -------------------------------------------------------------------------------------------------------

  const redraw = () => {
    if (play.pending || play.on) return;
    play.pending = true;
    requestAnimationFrame(draw);
  };

  const tickOver = (now) => {
    if (!play.on || !play.visible) {
      play.last = null;
      return;
    }
    const passed = Math.min(0.1, (now - (play.last ?? now)) / 1000);
    play.last = now;
    advance(passed);
    draw();
    keepTicking();
  };

  const keepTicking = () => {
    cancelAnimationFrame(play.handle); // never two loops at once
    play.handle = requestAnimationFrame(tickOver);
  };

  const advance = (seconds) => {
    const { times } = shown.run;
    const [start, end] = [times[0], times.at(-1)];
    if (view.spins) view.azimuth += SPIN * seconds;
    if (play.time < end) {
      play.time = Math.min(end, play.time + ((end - start) / LOOP_SECONDS) * play.speed * seconds);
    } else if ((play.rest += seconds) > REST_SECONDS) {
      [play.time, play.rest] = [start, 0];
    }
  };

  const setPlaying = (on) => {
    if (on === play.on) return;
    play.on = on;
    root.dataset.state = on ? "playing" : "paused";
    playButton.textContent = on ? "Pause" : "Play";
    if (on) keepTicking();
    else redraw();
  };

  // ---- Hands ------------------------------------------------------------------------------------------------------

  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  const zoomBy = (amount) => {
    view.zoom = clamp(view.zoom * amount, 0.3, 8);
    redraw();
  };
  const turnBy = (sideways, upwards) => {
    view.spins = false;
    view.azimuth += sideways;
    view.elevation = clamp(view.elevation + upwards, -1.5, 1.5);
    redraw();
  };

  const touches = new Map();
  canvas.addEventListener("pointerdown", (event) => {
    touches.set(event.pointerId, event);
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = touches.get(event.pointerId);
    if (!before) return;
    touches.set(event.pointerId, event);
    if (touches.size === 1) return turnBy((event.clientX - before.clientX) / 150, (event.clientY - before.clientY) / 150);
    const other = [...touches.values()].find((touch) => touch.pointerId !== event.pointerId);
    const span = (touch) => Math.hypot(touch.clientX - other.clientX, touch.clientY - other.clientY);
    zoomBy(span(event) / Math.max(1, span(before)));
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (event) => touches.delete(event.pointerId));

  // The wheel zooms once the scene has been clicked, so that scrolling past it never gets caught.
  canvas.addEventListener(
    "wheel",
    (event) => {
      if (document.activeElement !== canvas && !event.ctrlKey) return;
      event.preventDefault();
      zoomBy(Math.exp(-clamp(event.deltaY, -120, 120) / 400));
    },
    { passive: false },
  );
  canvas.addEventListener("dblclick", () => goHome());
  canvas.addEventListener("keydown", (event) => {
    const actions = {
      ArrowLeft: () => turnBy(-0.1, 0),
      ArrowRight: () => turnBy(0.1, 0),
      ArrowUp: () => turnBy(0, 0.1),
      ArrowDown: () => turnBy(0, -0.1),
      "+": () => zoomBy(1.15),
      "=": () => zoomBy(1.15),
      "-": () => zoomBy(1 / 1.15),
    };
    if (!actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  });
  const goHome = () => {
    Object.assign(view, HOME, { spins: true });
    redraw();
  };

  document.addEventListener("keydown", (event) => {
    if (event.code !== "Space" || !play.visible) return;
    if (event.target.closest("button, select, summary, a, textarea")) return;
    event.preventDefault();
    setPlaying(!play.on);
  });
  playButton.addEventListener("click", () => setPlaying(!play.on));
  find("reset").addEventListener("click", goHome);
  slider.addEventListener("input", () => {
    setPlaying(false);
    play.time = Number(slider.value);
    redraw();
  });
  find("speed").addEventListener("change", (event) => (play.speed = Number(event.target.value)));

  const fillSamples = () => {
    const options = data.runs[play.run].samples.map((sample, k) => {
      const final = format(sample.error.at(-1));
      return new Option(`${k + 1} · final error ${final}`, k, false, k === play.sample);
    });
    find("sample").replaceChildren(...options);
  };
  find("sample").addEventListener("change", (event) => {
    play.sample = Number(event.target.value);
    [play.time, play.rest] = [data.runs[play.run].times[0], 0];
    load();
    redraw();
  });
  find("run").addEventListener("change", (event) => {
    play.run = Number(event.target.value);
    play.sample = Math.min(play.sample, data.runs[play.run].samples.length - 1);
    fillSamples();
    load();
    redraw();
  });

  // ---- Start ------------------------------------------------------------------------------------------------------

  data.runs.forEach((run, k) => find("run").append(new Option(run.name, k)));
  find("run").closest("label").hidden = data.runs.length < 2;
  readColours();
  fillSamples();
  load();
  play.time = shown.run.times[0];
  draw();

  const themeChanged = () => {
    readColours();
    draw();
  };
  for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", themeChanged);
  new ResizeObserver(redraw).observe(canvas);
  new IntersectionObserver(([entry]) => {
    const appeared = entry.isIntersecting && !play.visible;
    play.visible = entry.isIntersecting;
    if (appeared && play.on) keepTicking();
  }).observe(canvas);
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) setPlaying(true);
})();
