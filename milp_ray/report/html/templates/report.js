"use strict";
(() => {
  const MOST = 20;
  const byId = (id) => document.getElementById(id);
  const parsed = new Map();
  const json = (id) => {
    if (!parsed.has(id)) parsed.set(id, JSON.parse(byId(id).textContent));
    return parsed.get(id);
  };

  // plotly.js lies in the page as text: it runs when the first figure is to be drawn.
  const library = () => {
    if (!window.Plotly) {
      const script = document.createElement("script");
      script.textContent = byId("plotly").textContent;
      document.head.append(script);
    }
    return window.Plotly;
  };

  const draw = (place) => {
    if (place.dataset.drawn) return;
    place.dataset.drawn = "yes";
    const owner = place.closest("[data-figures]");
    const figure = json(owner ? owner.dataset.figures : "figures")[place.id];
    try {
      library().newPlot(place, figure.data, figure.layout, {
        responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"],
      });
    } catch (error) {
      place.textContent = place.getAttribute("aria-label");
      throw error;
    }
  };

  // A figure in a closed section is never in view.
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) {
        observer.unobserve(entry.target);
        setTimeout(() => draw(entry.target), 0);
      }
    }
  }, { rootMargin: "300px" });
  const observe = () => document.querySelectorAll(".plot").forEach((place) => observer.observe(place));
  // The page is painted before the library is read.
  window.addEventListener("load", () => requestAnimationFrame(() => setTimeout(observe, 0)));
  window.addEventListener("beforeprint", () => {
    for (const place of document.querySelectorAll(".plot")) {
      if (!place.closest("details:not([open])")) draw(place);
    }
  });

  const find = byId("find");
  const element = (kind, text, name) => {
    const made = document.createElement(kind);
    made.textContent = text;
    if (name) made.className = name;
    return made;
  };
  const shown = (value) => (value === null ? "" : value);
  const cellOf = (value, index, section) => {
    if (index > 0) return element("td", shown(value), typeof value === "number" ? "number" : "");
    const cell = element("td", "", "name");
    const alias = element("code", value);
    cell.append(alias);
    if (section) {
      const link = element("a", " (drawn)");
      link.href = `#${section.id}`;
      link.addEventListener("click", () => { section.open = true; });
      cell.append(link);
    }
    return cell;
  };
  const search = () => {
    const { columns, rows } = json("all-rows");
    const wanted = find.value.trim().toLowerCase();
    const found = rows.filter((row) => row[0].toLowerCase().includes(wanted));
    const sections = new Map(
      [...document.querySelectorAll("details.user")].map((section) => [section.dataset.alias, section]));
    const head = document.createElement("tr");
    for (const column of columns) head.append(element("th", column));
    const lines = found.slice(0, MOST).map((row) => {
      const line = document.createElement("tr");
      line.append(...row.map((value, index) => cellOf(value, index, sections.get(row[0]))));
      return line;
    });
    byId("rows").replaceChildren(head, ...lines);
    byId("found").textContent = found.length > MOST
      ? `${found.length} users, the first ${MOST} are shown`
      : `${found.length} user${found.length === 1 ? "" : "s"}`;
  };
  find.addEventListener("input", search);
  window.addEventListener("load", () => requestAnimationFrame(() => setTimeout(search, 0)));
})();
