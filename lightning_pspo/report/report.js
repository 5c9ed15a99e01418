"use strict";
(() => {
  const formats = {
    percent: (v) => `${(100 * v).toFixed(1)} %`,
    number: (v) => (v !== 0 && (Math.abs(v) < 1e-4 || Math.abs(v) >= 1e5) ? v.toExponential(2) : String(Number(v.toPrecision(4)))),
  };
  const plots = [];

  // A line's points come from its own path: the page holds every number once.
  function prepare(plot) {
    const svg = plot.querySelector("svg");
    const d = svg.dataset;
    const axis = { x0: +d.x0, x1: +d.x1, y0: +d.y0, y1: +d.y1, log: "log" in d };
    const box = svg.viewBox.baseVal;
    const left = 58, right = box.width - 10, top = 10, bottom = box.height - 30;
    const toX = (px) => axis.x0 + ((px - left) / (right - left)) * (axis.x1 - axis.x0);
    const toY = (py) => {
      const share = (bottom - py) / (bottom - top);
      return axis.log ? axis.y0 * Math.pow(axis.y1 / axis.y0, share) : axis.y0 + share * (axis.y1 - axis.y0);
    };
    const lines = [...svg.querySelectorAll("path.line")].map((path) => {
      const numbers = (path.getAttribute("d").match(/-?[\d.]+/g) || []).map(Number);
      const points = [];
      for (let i = 0; i + 1 < numbers.length; i += 2) points.push([numbers[i], numbers[i + 1]]);
      return { path, points };
    });
    const places = [...new Set(lines.flatMap((line) => line.points.map((p) => p[0])))].sort((a, b) => a - b);
    return { plot, svg, lines, places, toX, toY, tip: plot.querySelector(".tip"), cursor: svg.querySelector(".cursor"), at: -1, width: box.width };
  }

  function nearest(values, x) {
    let low = 0, high = values.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (values[middle] < x) low = middle + 1; else high = middle;
    }
    return low > 0 && x - values[low - 1] < values[low] - x ? low - 1 : low;
  }

  function show(chart, index) {
    if (!chart.places.length) return;
    chart.at = Math.max(0, Math.min(chart.places.length - 1, index));
    const x = chart.places[chart.at];
    const format = formats[chart.svg.dataset.format] || formats.number;
    const rows = [];
    for (const { path, points } of chart.lines) {
      if (path.classList.contains("off") || !points.length) continue;
      const point = points[nearest(points.map((p) => p[0]), x)];
      if (Math.abs(point[0] - x) > 0.051) continue;
      rows.push([path.dataset.name, format(chart.toY(point[1])), path.getAttribute("class")]);
    }
    const head = document.createElement("b");
    head.textContent = `rollout ${formats.number(Math.round(chart.toX(x) * 10) / 10)}`;
    chart.tip.replaceChildren(head, ...rows.map(([name, value, kind]) => {
      const row = document.createElement("span");
      const dot = document.createElement("i");
      dot.className = kind.replace("line", "dot");
      const number = document.createElement("em");
      number.textContent = value;
      row.append(dot, name, number);
      return row;
    }));
    chart.cursor.setAttribute("x1", x);
    chart.cursor.setAttribute("x2", x);
    chart.plot.classList.add("read");
    chart.tip.hidden = false;
    const place = (x / chart.width) * chart.svg.clientWidth;
    const room = chart.svg.clientWidth - chart.tip.offsetWidth;
    const beside = place < chart.svg.clientWidth / 2 ? place + 12 : place - chart.tip.offsetWidth - 12;
    chart.tip.style.left = `${Math.max(0, Math.min(room, beside))}px`;
  }

  function hide(chart) {
    chart.plot.classList.remove("read");
    chart.tip.hidden = true;
    chart.at = -1;
  }

  for (const plot of document.querySelectorAll(".plot")) {
    let chart = null; // prepared when it is first used
    const get = () => (chart = chart || prepare(plot));
    plots.push(() => chart && chart.at >= 0 && show(chart, chart.at));
    plot.addEventListener("pointermove", (event) => {
      const box = get().svg.getBoundingClientRect();
      show(chart, nearest(chart.places, ((event.clientX - box.left) / box.width) * chart.width));
    });
    plot.addEventListener("pointerleave", () => hide(get()));
    plot.addEventListener("blur", () => hide(get()));
    plot.addEventListener("keydown", (event) => {
      const steps = { ArrowRight: 1, ArrowLeft: -1, PageUp: 10, PageDown: -10, Home: -1e9, End: 1e9 };
      if (event.key === "Escape") return hide(get());
      if (!(event.key in steps) || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      const from = get().at < 0 ? (steps[event.key] > 0 ? -1 : chart.places.length) : chart.at;
      show(chart, from + steps[event.key]);
      chart.tip.setAttribute("role", "status");
    });
  }

  for (const button of document.querySelectorAll("button[data-toggle]")) {
    button.addEventListener("click", () => {
      const pressed = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(pressed));
      if (button.dataset.toggle === "raw") {
        document.documentElement.classList.toggle("raw", pressed);
        return;
      }
      for (const drawn of document.querySelectorAll(`[data-arm="${button.dataset.toggle}"]`)) drawn.classList.toggle("off", !pressed);
      plots.forEach((again) => again());
    });
  }
  document.documentElement.classList.add("scripted");
})();
