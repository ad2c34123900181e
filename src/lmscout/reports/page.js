"use strict";
(() => {
  const root = document.documentElement;
  const stored = (() => { try { return localStorage.getItem("lmscout-theme"); } catch { return null; } })();
  if (stored === "light" || stored === "dark") root.dataset.theme = stored;
  document.getElementById("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    try { localStorage.setItem("lmscout-theme", root.dataset.theme); } catch { /* a page without storage */ }
  });

  // Figures, one after the other while the page is idle, so that it can be read meanwhile.
  const idle = window.requestIdleCallback ? (next) => requestIdleCallback(next, { timeout: 300 }) : (next) => setTimeout(next, 0);
  const plots = [...document.querySelectorAll(".plot")];
  const config = {
    responsive: true, displaylogo: false,
    modeBarButtons: [["toImage", "resetScale2d"]],
  };
  let drawn = 0;
  const open = () => {
    if (!("open" in root.dataset)) performance.mark("open");
    root.dataset.open = "";
  };
  const draw = () => {
    const plot = plots[drawn++];
    const source = plot.querySelector("script");
    const figure = JSON.parse(source.textContent);
    source.remove();
    if (plot.clientWidth < 500) {
      // Legends have a line for every entry or two there.
      const entries = figure.data.filter((trace) => trace.name && trace.showlegend !== false).length;
      figure.layout.font = { size: 11 };
      figure.layout.height += entries > 2 ? 9 * entries : 0;
      plot.style.height = `${figure.layout.height}px`;
    }
    return Plotly.newPlot(plot, figure.data, figure.layout, config);
  };
  const next = () => {
    if (drawn === plots.length) { open(); root.dataset.drawn = drawn; return; }
    draw().then(() => { open(); idle(next); });
  };
  next();

  // On paper every figure is drawn, as wide as the text of A4 and letter between margins.
  addEventListener("beforeprint", () => {
    while (drawn < plots.length) draw();
    for (const plot of plots) Plotly.relayout(plot, { width: 660 });
  });
  addEventListener("afterprint", () => {
    for (const plot of plots) Plotly.relayout(plot, { width: null, autosize: true });
  });

  // Tables: a click on a heading sorts, numbers by value, what has none last.
  const value = (cell) => {
    const text = cell.textContent.trim().replace(/[,%]/g, "").replace("−", "-");
    return text === "" || text === "–" ? null : isNaN(text) ? cell.textContent : Number(text);
  };
  const order = (a, b) => a === null || b === null ? 0 : typeof a === typeof b && typeof a === "number" ? a - b : String(a).localeCompare(String(b));
  for (const heading of document.querySelectorAll("th")) {
    heading.querySelector("button").addEventListener("click", () => {
      const descending = heading.getAttribute("aria-sort") === "ascending";
      const place = heading.cellIndex, body = heading.closest("table").tBodies[0];
      const rows = [...body.rows].map((row) => [value(row.cells[place]), row]);
      rows.sort(([a], [b]) => (a === null) - (b === null) || (descending ? order(b, a) : order(a, b)));
      body.append(...rows.map(([, row]) => row));
      for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    });
  }
  for (const button of document.querySelectorAll(".csv")) {
    button.addEventListener("click", () => {
      const rows = [...button.closest(".table").querySelector("table").rows];
      const field = (cell) => {
        const text = cell.textContent.trim();
        const shown = cell.classList.contains("n") && cell.tagName === "TD" ? text.replace(/,/g, "").replace("–", "") : text;
        return /[",\n]/.test(shown) ? `"${shown.replaceAll('"', '""')}"` : shown;
      };
      const text = rows.map((row) => [...row.cells].map(field).join(",")).join("\n") + "\n";
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
      link.download = button.dataset.file;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
  }
})();
