// Draws the figures of the page with Plotly. A figure is the record of Figure.fs as JSON; null is "no number".
(function () {
  "use strict";
  const read = id => JSON.parse(document.getElementById(id).textContent);
  const figures = new Map(read("figures").map(f => [f.id, f]));
  const themes = read("themes");
  const darkSystem = matchMedia("(prefers-color-scheme: dark)");
  const coarse = matchMedia("(pointer: coarse)").matches;
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const symbols = ["circle", "square", "diamond", "triangle-up", "cross", "x", "star"];
  let printing = false;

  // ------------------------------------------------------------------------------------------ colours and texts

  const isDark = () => !printing && (root.dataset.theme ? root.dataset.theme === "dark" : darkSystem.matches);
  const channels = c => [1, 3, 5].map(i => parseInt(c.slice(i, i + 2), 16));
  const rgba = (c, opacity) => "rgba(" + channels(c).join(",") + "," + opacity + ")";

  function along(ramp, at) {
    const place = Math.max(0, Math.min(1, at)) * (ramp.length - 1);
    const left = Math.min(Math.floor(place), ramp.length - 2);
    const a = channels(ramp[left]), b = channels(ramp[left + 1]);
    return "#" + a.map((v, i) => Math.round(v + (place - left) * (b[i] - v)).toString(16).padStart(2, "0")).join("");
  }

  // black or white, whichever has the higher contrast (WCAG 2)
  function textOn(c) {
    const l = channels(c).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * l[0] + 0.7152 * l[1] + 0.0722 * l[2] > 0.179 ? "#000000" : "#ffffff";
  }

  function theme() {
    const style = getComputedStyle(root);
    const own = name => style.getPropertyValue("--" + name).trim();
    const t = Object.assign({}, themes[isDark() ? "dark" : "light"]);
    for (const name of ["ink", "muted", "paper", "line"]) t[name] = own(name);
    t.colour = ink => ink.kind !== undefined
      ? t.kinds[ink.kind % t.kinds.length]
      : along(t.ramp, 0.4 + 0.6 * ink.along);
    return t;
  }

  // Plotly reads some markup in texts
  const plain = s => s.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const shorten = (s, n) => {
    const letters = Array.from(s);
    return plain(letters.length <= n ? s : letters.slice(0, n - 1).join("") + "…");
  };

  // ------------------------------------------------------------------------------------------ traces

  const tooltip = (hover, several) => ({
    customdata: hover.map(plain),
    hovertemplate: "%{customdata}<extra>" + (several ? "%{fullData.name}" : "") + "</extra>"
  });

  const errors = (y, low, high, colour) => ({
    type: "data", symmetric: false, color: colour, thickness: 1, width: 3,
    array: y.map((v, i) => high[i] === null ? null : high[i] - v),
    arrayminus: y.map((v, i) => low[i] === null ? null : v - low[i])
  });

  function curve(c, several, t) {
    const colour = t.colour(c.ink), kind = c.ink.kind || 0;
    const banded = c.x.map((_, i) => i).filter(i => c.low[i] !== null && c.high[i] !== null);
    const pick = values => banded.map(i => values[i]);
    const traces = [];
    if (banded.length > 1) traces.push({
      type: "scatter", mode: "none", fill: "toself", fillcolor: rgba(colour, 0.16), hoverinfo: "skip",
      showlegend: false, legendgroup: c.name,
      x: pick(c.x).concat(pick(c.x).reverse()), y: pick(c.high).concat(pick(c.low).reverse())
    });
    traces.push(Object.assign({
      type: "scatter", name: shorten(c.name, 40), legendgroup: c.name, showlegend: several, x: c.x, y: c.y,
      mode: c.x.length <= 60 || c.dotAt !== null ? "lines+markers" : "lines",
      line: { color: colour, width: 2, dash: kind >= t.kinds.length ? "dash" : "solid" },
      marker: {
        color: colour, symbol: symbols[kind % symbols.length],
        size: c.dotAt !== null ? c.x.map(x => x === c.dotAt ? 8 : 0) : 7
      }
    }, banded.length === 1 ? { error_y: errors(c.y, c.low, c.high, colour) } : {}, tooltip(c.hover, several)));
    return traces;
  }

  function bar(s, bars, t) {
    const hasErrors = s.low.some(v => v !== null);
    const labelled = bars.series.length === 1 && bars.categories.length <= 12 && !hasErrors;
    return Object.assign({
      type: "bar", name: shorten(s.name, 40), x: s.x, y: s.y, marker: { color: t.colour(s.ink) }
    }, hasErrors ? { error_y: errors(s.y, s.low, s.high, t.ink) } : {},
    labelled ? { text: s.y.map(v => v === null ? "" : v.toFixed(1)), textposition: "outside", cliponaxis: false } : {},
    tooltip(s.hover, bars.series.length > 1));
  }

  const isLabelled = h => h.rows.length <= 25 && h.columns.length <= 25;

  function heat(h, narrow, t) {
    const from = h.range.item1, till = h.range.item2;
    const traces = [{
      type: "heatmap", z: h.values, hoverongaps: false, zmin: from, zmax: till,
      colorscale: t.ramp.map((c, i) => [i / (t.ramp.length - 1), c]),
      customdata: h.hover.map(row => row.map(plain)), hovertemplate: "%{customdata}<extra></extra>",
      colorbar: {
        title: { text: plain(h.unit), side: "right" }, thickness: narrow ? 8 : 10, outlinewidth: 0, len: 0.9,
        tickfont: { color: t.muted }
      }
    }];
    if (isLabelled(h)) {
      const cells = h.values.flatMap((row, i) => row.map((v, j) => [i, j, v])).filter(([i, j, v]) => v !== null && h.texts[i][j]);
      traces.push({
        type: "scatter", mode: "text", hoverinfo: "skip", showlegend: false,
        x: cells.map(c => c[1]), y: cells.map(c => c[0]), text: cells.map(([i, j]) => plain(h.texts[i][j])),
        textfont: {
          size: h.columns.length > 12 || narrow ? 10 : 12,
          color: cells.map(c => textOn(along(t.ramp, (c[2] - from) / (till - from))))
        }
      });
    }
    return traces;
  }

  function arrows(group, labelled, t) {
    const colour = t.colour(group.ink), name = plain(group.name);
    const moved = group.arrows.filter(a => a.to !== null);
    const line = pick => moved.flatMap(a => [pick(a.from), pick(a.to), null]);
    return [
      // the head of an arrow points away from the marker before it
      Object.assign({
        type: "scatter", mode: "lines+markers", name, legendgroup: name, showlegend: false,
        x: line(p => p.item1), y: line(p => p.item2), line: { color: colour, width: 1.5 },
        marker: { color: colour, symbol: "arrow", angleref: "previous", opacity: 1, size: moved.flatMap(() => [0, 9, 0]) }
      }, tooltip(moved.flatMap(a => [a.hover, a.hover, ""]))),
      Object.assign({
        type: "scatter", mode: labelled ? "markers+text" : "markers", name, legendgroup: name,
        x: group.arrows.map(a => a.from.item1), y: group.arrows.map(a => a.from.item2), marker: { color: colour, size: 7 },
        text: group.arrows.map(a => plain(a.label)), textposition: "top center", textfont: { size: 11 }
      }, tooltip(group.arrows.map(a => a.hover)))
    ];
  }

  // ------------------------------------------------------------------------------------------ layout

  function axis(a, t, more) {
    const made = {
      title: { text: plain(a.title), standoff: 8 }, automargin: true, gridcolor: t.line, zerolinecolor: t.line,
      linecolor: t.muted, tickcolor: t.muted, ticks: "outside", ticklen: 4
    };
    if (a.log) Object.assign(made, { type: "log", dtick: 1, exponentformat: "power" });
    if (a.fromZero) made.rangemode = "tozero";
    if (a.range) made.range = [a.range.item1, a.range.item2];
    return Object.assign(made, more);
  }

  // ticks at some of many names
  function named(names) {
    const skip = Math.ceil(names.length / 40) || 1;
    const shown = names.map((_, i) => i).filter(i => i % skip === 0);
    return {
      tickmode: "array", tickvals: shown, ticktext: shown.map(i => shorten(names[i], 18)), showgrid: false, zeroline: false
    };
  }

  const line = (axis, at, t) => {
    const other = axis === "x" ? "y" : "x";
    return {
      type: "line", [axis + "0"]: at, [axis + "1"]: at, [other + "0"]: 0, [other + "1"]: 1, [other + "ref"]: other + " domain",
      line: { color: t.ink, width: 0.7 }
    };
  };

  const fixed = { constrain: "domain", constraintoward: "left" };
  const squared = { scaleanchor: "x", constrain: "domain", constraintoward: "top" };

  // a figure's traces, the parts of its layout, and its height for a width
  function parts(f, narrow, t) {
    const marks = f.marks;
    if (marks.curves) {
      const curves = marks.curves, several = curves.length > 1;
      const few = curves.every(c => Math.max(...c.x) <= 12);
      return {
        data: curves.flatMap(c => curve(c, several, t)),
        layout: {
          xaxis: axis(f.x, t, f.x.whole ? (few ? { dtick: 1 } : { tickformat: "d" }) : {}),
          yaxis: axis(f.y, t), showlegend: several,
          shapes: f.borders.map(at => line("x", at, t))
        },
        height: width => Math.min(380, width * 0.8 + 40)
      };
    }
    if (marks.bars) return {
      data: marks.bars.series.map(s => bar(s, marks.bars, t)),
      layout: {
        xaxis: axis(f.x, t, named(marks.bars.categories)), yaxis: axis(f.y, t),
        barmode: marks.bars.stacked ? "stack" : "group", showlegend: marks.bars.series.length > 1
      },
      height: width => Math.min(380, width * 0.8 + 40)
    };
    if (marks.heatmap) {
      const h = marks.heatmap, square = h.rows.length === h.columns.length;
      const labels = Object.assign(named(h.rows), { range: [h.rows.length - 0.5, -0.5] });
      return {
        data: heat(h, narrow, t),
        layout: {
          xaxis: axis(f.x, t, Object.assign({ range: [-0.5, h.columns.length - 0.5] }, fixed, named(h.columns))),
          yaxis: axis(f.y, t, square ? Object.assign(labels, squared) : labels),
          shapes: f.borders.flatMap(at => [line("x", at - 0.5, t), line("y", at - 0.5, t)]), showlegend: false
        },
        height: width => square
          ? Math.min(h.columns.length > 30 ? 960 : 620, width * 0.76 + 40)
          : Math.max(320, Math.min(560, 120 + 26 * h.rows.length))
      };
    }
    const all = marks.arrows.flatMap(g => g.arrows);
    const span = key => {
      const values = all.flatMap(a => [a.from[key], (a.to || a.from)[key]]);
      return Math.max(1e-9, Math.max(...values) - Math.min(...values));
    };
    const aspect = 0.15 + 0.7 * Math.max(0.5, Math.min(1.1, span("item2") / span("item1")));
    return {
      data: marks.arrows.flatMap(g => arrows(g, all.length <= 20, t)),
      layout: { xaxis: axis(f.x, t, fixed), yaxis: axis(f.y, t, squared), showlegend: true },
      height: width => Math.min(620, width * aspect + 40)
    };
  }

  // digits in cells need their width: a narrow screen scrolls
  function widthOf(f, place) {
    const room = printing ? (place.closest("figure").className === "wide" ? 680 : 330) : place.parentElement.clientWidth;
    const h = f.marks.heatmap;
    return h && isLabelled(h) && !printing ? Math.max(room, 150 + 30 * h.columns.length) : room;
  }

  function draw(place) {
    const f = figures.get(place.dataset.figure), t = theme();
    const width = widthOf(f, place), narrow = width < 480;
    const made = parts(f, narrow, t);
    const entries = made.data.filter(d => d.showlegend !== false && d.name);
    const legendLines = Math.ceil(entries.reduce((sum, d) => sum + 55 + 7.5 * d.name.length, 0) / width);
    const legendRoom = made.layout.showlegend ? 10 + 20 * legendLines : 0;
    const layout = Object.assign({}, made.layout, {
      width, height: Math.round(Math.max(printing ? 200 : 240, made.height(width) * (printing ? 0.8 : 1)) + legendRoom),
      font: { family: getComputedStyle(document.body).fontFamily, size: narrow ? 11 : 12.5, color: t.ink },
      paper_bgcolor: t.paper, plot_bgcolor: t.paper,
      // the toolbar lies in the top margin, the legend at the bottom
      margin: { l: 56, r: 12, t: coarse || printing ? 12 : 32, b: 48 + legendRoom },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: t.muted, activecolor: t.ink },
      legend: { orientation: "h", x: 0, xref: "container", y: 0, yref: "container", yanchor: "bottom", traceorder: "normal" },
      hoverlabel: { bgcolor: t.paper, bordercolor: t.muted, font: { color: t.ink }, align: "left" },
      // a finger on a chart scrolls the page
      dragmode: coarse ? false : "zoom"
    });
    place.style.minHeight = "";
    Plotly.react(place, made.data, layout, {
      responsive: false, displaylogo: false, displayModeBar: coarse ? false : "hover",
      modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
      toImageButtonOptions: { format: "svg", filename: f.id }
    });
  }

  // ------------------------------------------------------------------------------------------ page

  const places = Array.from(document.querySelectorAll(".chart"));
  const scrolls = Array.from(document.querySelectorAll(".scroll"));
  const hint = () => scrolls.forEach(s => s.classList.toggle("cut", !printing && s.scrollWidth > s.clientWidth + 1));
  let drawn = 0;

  // one chart at a time, so that a long page opens at once
  function drawNext() {
    if (drawn < places.length) { draw(places[drawn++]); setTimeout(drawNext); } else hint();
  }
  const redraw = () => { places.slice(0, drawn).forEach(draw); hint(); };

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
    drawn = places.length;
    redraw();
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

  document.querySelectorAll("details").forEach(d => d.addEventListener("toggle", hint));
  label();
  hint();
  drawNext();
})();
