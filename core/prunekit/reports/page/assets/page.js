"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const config = { responsive: true, displaylogo: false, showTips: false, showSendToCloud: false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // On a dark page, dark colours are lightened.
  function themed(value) {
    if (!dark.matches || !/^#[0-9a-f]{6}$/i.test(value)) return value;
    const parts = [1, 3, 5].map((i) => parseInt(value.slice(i, i + 2), 16));
    const light = (0.299 * parts[0] + 0.587 * parts[1] + 0.114 * parts[2]) / 255;
    if (light > 0.42) return value;
    return "#" + parts.map((p) => Math.round(p + (255 - p) * 0.55).toString(16).padStart(2, "0")).join("");
  }

  function recoloured(value, key) {
    if (typeof value === "string") return /color$/.test(key || "") ? themed(value) : value;
    if (Array.isArray(value)) return value.map((item) => recoloured(item, key));
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, recoloured(v, k)]));
    return value;
  }

  function axis(own) {
    return { gridcolor: colour("--line"), zerolinecolor: colour("--line"), linecolor: colour("--soft"), automargin: true,
      showline: true, ticks: "outside", tickcolor: colour("--soft"), ...own };
  }

  // Names that do not fit side by side stand upright, and the legend makes room for them.
  function upright(own) {
    const names = (own.xaxis && own.xaxis.ticktext) || [];
    const longest = Math.max(0, ...names.map((name) => name.length));
    return names.length > 6 && longest > 6 ? Math.min(longest, 24) : 0;
  }

  function layoutOf(own) {
    const letters = upright(own);
    const title = own.title ? { ...own.title, font: { size: 14 }, x: 0.02, xanchor: "left", y: 0.98, yanchor: "top" } : undefined;
    return { ...recoloured(own), annotations: own.annotations || [], title, xaxis: axis(letters ? { ...own.xaxis, title: undefined, tickangle: -90, tickfont: { size: 9 } } : own.xaxis), yaxis: axis(own.yaxis), paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)", font: { color: colour("--ink"), size: 12 }, margin: { l: 50, r: 10, t: 36, b: 40 },
      legend: { orientation: "h", y: -0.22 - 0.03 * letters, font: { size: 11 } }, hovermode: "closest", dragmode: "zoom",
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--soft"), activecolor: colour("--mark") } };
  }

  const drawn = new Map();
  function draw(element, panel) {
    drawn.set(element, panel);
    return Plotly.newPlot(element, recoloured(panel.data), layoutOf(panel.layout), config);
  }

  const waiting = new Map();
  for (const [key, panels] of Object.entries(data.figures))
    panels.forEach((panel, i) => waiting.set(document.getElementById(`${key}-${i}`), panel));
  function drawAll() {
    const all = [...waiting].map(([element, panel]) => draw(element, panel));
    waiting.clear();
    return Promise.all(all);
  }
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries)
      if (isIntersecting && waiting.has(target)) {
        draw(target, waiting.get(target)).then(() => target.on && target.on("plotly_click", clicked));
        waiting.delete(target);
        seen.unobserve(target);
      }
  }, { rootMargin: "400px" });
  for (const element of waiting.keys()) seen.observe(element);
  addEventListener("beforeprint", drawAll);
  dark.addEventListener("change", () => { for (const [element, panel] of drawn) draw(element, panel); });

  // -- a layer that is chosen ------------------------------------------------------------------

  const layers = data.layers && data.layers.names ? data.layers : null;
  const place = document.getElementById("layer");
  function line(text) {
    const element = document.createElement("p");
    element.textContent = text;
    place.append(element);
  }

  function choose(name, smooth) {
    const i = layers ? layers.names.indexOf(name) : -1;
    if (i < 0 || !place) return;
    for (const button of document.querySelectorAll("button[data-layer]"))
      button.setAttribute("aria-pressed", String(button.dataset.layer === name));
    place.replaceChildren();
    const title = document.createElement("h3");
    title.textContent = `${name}, ${layers.shapes[i]}`;
    const plot = document.createElement("div");
    plot.className = "plot";
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", `Sparsity of ${name} over the steps`);
    place.append(title, plot);
    draw(plot, { data: [{ type: "scatter", mode: "lines+markers", x: layers.steps, y: layers.sparsity[i], name: "sparsity",
      line: { color: "#332288" }, hovertemplate: "step %{x}: %{y:.4%}<extra></extra>" }],
      layout: { xaxis: { title: { text: "step" } }, yaxis: { title: { text: "sparsity" }, tickformat: ".0%" } } });
    const found = layers.probe[name];
    if (found) {
      const q = found.saliency;
      if (Array.isArray(q) && q.every((v) => v !== null))
        line(`Saliencies of the kept weights: ${q.map((v) => v.toPrecision(3)).join(", ")} (5, 25, 50, 75 and 95 %).`);
      line(`Of ${found.units} units, ${found.units_without_input} have no input, ${found.units_without_output} no output, ` +
        `and ${found.dead_units} are dead on the examples.`.replaceAll("null", "an unknown number"));
      if (typeof found.effective_sparsity === "number")
        line(`${(100 * found.effective_sparsity).toFixed(3)} % are gone or on no path.`);
    }
    place.scrollIntoView({ behavior: smooth && !still.matches ? "smooth" : "instant", block: "nearest" });
  }

  function clicked(event) {
    const point = event.points && event.points[0];
    if (point && layers && layers.names.includes(point.data.name)) go(point.data.name);
  }
  function go(name) {
    history.replaceState(null, "", `#layer=${encodeURIComponent(name)}`);
    choose(name, true);
  }
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-layer]");
    if (button) go(button.dataset.layer);
  });
  function fromAddress() {
    const match = /^#layer=(.*)$/.exec(location.hash);
    if (match) choose(decodeURIComponent(match[1]), false);
    if (location.hash === "#all") drawAll().then(() => document.documentElement.setAttribute("data-drawn", "all"));
  }
  addEventListener("hashchange", fromAddress);
  fromAddress();
})();
