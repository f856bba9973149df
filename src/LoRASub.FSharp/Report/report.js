(function () {
  "use strict";
  const read = id => JSON.parse(document.getElementById(id).textContent);
  const figures = new Map(read("figures").map(f => [f.id, f]));
  const palettes = read("palettes");
  const darkSystem = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const button = document.getElementById("theme");
  let printing = false;

  const isDark = () => !printing && (root.dataset.theme ? root.dataset.theme === "dark" : darkSystem.matches);
  const theme = () => palettes[isDark() ? "dark" : "light"];

  const channels = c => [1, 3, 5].map(i => parseInt(c.slice(i, i + 2), 16));

  function along(ramp, at) {
    const place = Math.max(0, Math.min(1, at)) * (ramp.length - 1);
    const left = Math.min(Math.floor(place), ramp.length - 2);
    const a = channels(ramp[left]), b = channels(ramp[left + 1]);
    return "rgb(" + a.map((v, i) => Math.round(v + (place - left) * (b[i] - v))).join(",") + ")";
  }

  // @kind:2, @kind:2:0.16, @along:0.5, @ramp, @ink: colours by meaning, as the theme has them
  function colour(name, t) {
    const [what, value, opacity] = name.slice(1).split(":");
    if (what === "ramp") return t.ramp.map((c, i) => [i / (t.ramp.length - 1), c]);
    if (what === "along") return along(t.ramp, 0.4 + 0.6 * Number(value));
    if (what !== "kind") return t[what];
    const c = t.kinds[Number(value) % t.kinds.length];
    return opacity ? "rgba(" + channels(c).join(",") + "," + opacity + ")" : c;
  }

  const isColour = s => /^@(kind:\d+(:[\d.]+)?|along:[\d.]+|ramp|ink|faint|paper|muted)$/.test(s);
  const texts = new Set(["customdata", "text", "ticktext", "name", "legendgroup"]);

  // a copy with the theme's colours; what people wrote is left as it is
  function themed(value, t, key) {
    if (texts.has(key)) return value;
    if (Array.isArray(value)) return value.map(v => themed(v, t));
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, k === "title" ? v : themed(v, t, k)]));
    return typeof value === "string" && isColour(value) ? colour(value, t) : value;
  }

  function drawn(figure, place) {
    const t = theme();
    // paper is laid out only after this; its charts have a width that fits
    const width = printing ? 640 : place.clientWidth;
    const narrow = width < 480;
    const layout = themed(figure.layout, t);
    const axis = {
      gridcolor: t.faint, zerolinecolor: t.faint, linecolor: t.muted, tickcolor: t.muted, ticks: "outside", ticklen: 4
    };
    layout.xaxis = Object.assign({}, axis, layout.xaxis);
    layout.yaxis = Object.assign({}, axis, layout.yaxis);
    Object.assign(layout, {
      width,
      height: Math.round(Math.max(240, Math.min(figure.limit, width * figure.aspect + 40))),
      font: { family: getComputedStyle(document.body).fontFamily, size: narrow ? 11 : 12.5, color: t.ink },
      paper_bgcolor: t.paper,
      plot_bgcolor: t.paper,
      margin: Object.assign({ l: 56, r: 12, t: 12, b: 48 }, layout.margin),
      hoverlabel: { bgcolor: t.paper, bordercolor: t.muted, font: { color: t.ink }, align: "left" },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", traceorder: "normal", font: { size: narrow ? 11 : 12 } },
      // a finger on a chart scrolls the page
      dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom"
    });
    const data = themed(figure.data, t);
    for (const trace of data)
      if (trace.colorbar) trace.colorbar.tickfont = { color: t.muted };
    return [data, layout];
  }

  const config = {
    responsive: false,
    displayModeBar: matchMedia("(pointer: coarse)").matches ? false : "hover",
    displaylogo: false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
    toImageButtonOptions: { format: "svg" }
  };

  const seen = new Set();

  function draw(place) {
    seen.add(place);
    const figure = figures.get(place.dataset.figure);
    config.toImageButtonOptions.filename = figure.id;
    Plotly.react(place, ...drawn(figure, place), Object.assign({}, config));
  }

  const places = Array.from(document.querySelectorAll(".chart"));
  const redraw = () => seen.forEach(draw);

  function label() {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", "Switch to " + (isDark() ? "light" : "dark") + " colours");
    button.setAttribute("aria-pressed", String(isDark()));
  }

  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    label();
    redraw();
  });
  darkSystem.addEventListener("change", () => { label(); redraw(); });

  let width = innerWidth, waiting = 0;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(redraw, 120);
  });

  addEventListener("beforeprint", () => {
    printing = true;
    root.dataset.before = root.dataset.theme || "";
    root.dataset.theme = "light";
    document.querySelectorAll("main details").forEach(d => { d.open = true; });
    places.forEach(draw);
  });
  addEventListener("afterprint", () => {
    printing = false;
    if (root.dataset.before) root.dataset.theme = root.dataset.before; else delete root.dataset.theme;
    redraw();
  });

  // small images are shown in their pixels, not blurred
  document.querySelectorAll(".samples img").forEach(image => {
    const mark = () => image.classList.toggle("small", image.naturalWidth < 100);
    if (image.complete) mark(); else image.addEventListener("load", mark);
  });

  // a chart is drawn when it is about to be seen: a long page opens at once
  const watch = new IntersectionObserver(entries => {
    for (const entry of entries)
      if (entry.isIntersecting) { watch.unobserve(entry.target); draw(entry.target); }
  }, { rootMargin: "800px" });
  places.forEach(place => {
    const figure = figures.get(place.dataset.figure);
    place.style.minHeight = Math.round(Math.max(240, Math.min(figure.limit, place.clientWidth * figure.aspect + 40))) + "px";
    watch.observe(place);
  });
  label();
})();
