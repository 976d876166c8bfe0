// Values on hover: a vertical line at the nearest point, and what every series is there.
"use strict";

for (const figure of document.querySelectorAll("figure.chart")) {
  const data = JSON.parse(figure.querySelector(".chart-data").textContent);
  const svg = figure.querySelector(".plot svg");
  const cursor = svg.querySelector(".cursor");
  const tip = figure.querySelector(".tip");
  const stops = [...new Set(data.series.flatMap((series) => series.x))].sort((a, b) => a - b);
  let current = 0;

  const element = (name, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return node;
  };

  const row = (series, k) => {
    const line = document.createElement("div");
    const name = document.createElement("span");
    const dot = document.createElement("i");
    dot.className = series.style;
    name.append(dot, series.name);
    const value = document.createElement("b");
    value.textContent = series.value[k];
    line.append(name, value);
    return line;
  };

  const show = (index) => {
    current = Math.max(0, Math.min(stops.length - 1, index));
    const x = stops[current];
    cursor.replaceChildren(element("line", { x1: x, x2: x, y1: data.top, y2: data.bottom }));
    const rows = [];
    let where = "";
    for (const series of data.series) {
      const k = series.x.findIndex((other) => Math.abs(other - x) < 0.06);
      if (k < 0) continue;
      where = series.at[k];
      rows.push(row(series, k));
      const dot = element("g", { class: series.style });
      dot.append(element("circle", { cx: x, cy: series.y[k], r: 3.2 }));
      cursor.append(dot);
    }
    const head = document.createElement("span");
    head.textContent = `${data.label} ${where}`;
    tip.replaceChildren(head, ...rows);
    tip.style.display = "block";
    const scale = svg.clientWidth / data.width;
    const left = x * scale + 14;
    const flips = left + tip.offsetWidth > svg.clientWidth;
    tip.style.left = `${Math.max(0, flips ? x * scale - 14 - tip.offsetWidth : left)}px`;
    tip.style.top = "14px";
  };

  const hide = () => {
    cursor.replaceChildren();
    tip.style.display = "none";
  };

  const nearest = (x) => stops.reduce((best, stop, k) => (Math.abs(stop - x) < Math.abs(stops[best] - x) ? k : best), 0);

  const follow = (event) => {
    const box = svg.getBoundingClientRect();
    show(nearest(((event.clientX - box.left) / box.width) * data.width));
  };

  svg.addEventListener("pointermove", follow);
  svg.addEventListener("pointerdown", follow);
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") hide();
    if (!step) return;
    event.preventDefault();
    show(current + step);
  });
}

// Paper shows everything.
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
