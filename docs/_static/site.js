// Lessons' outputs follow the scheme of the page: strips by an attribute, plotly's figures by a layout.
(() => {
  const dark = () => {
    const chosen = document.body.dataset.theme;
    if (chosen === "dark" || chosen === "light") return chosen === "dark";
    return matchMedia("(prefers-color-scheme: dark)").matches;
  };
  const paint = () => {
    const isDark = dark();
    document.body.dataset.scheme = isDark ? "dark" : "light";
    document.body.setAttribute("data-jp-theme-light", String(!isDark));
    if (!window.Plotly) return;
    const ink = isDark ? "#e6e6e6" : "#1b1b1b", grid = isDark ? "#444" : "#ddd";
    for (const figure of document.querySelectorAll(".js-plotly-plot")) {
      const change = {
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", "font.color": ink,
        "legend.bgcolor": "rgba(0,0,0,0)",
      };
      for (const name of Object.keys(figure.layout)) {
        if (/^[xy]axis\d*$/.test(name)) {
          for (const part of ["color", "linecolor", "tickcolor"]) change[`${name}.${part}`] = ink;
          change[`${name}.gridcolor`] = grid;
          change[`${name}.tickfont.color`] = ink;
        }
      }
      window.Plotly.relayout(figure, change);
    }
  };
  paint();
  window.addEventListener("load", paint);
  // What the theme leaves without a level or a name.
  for (const caption of document.querySelectorAll('p.caption[role="heading"]')) caption.ariaLevel = "2";
  const names = { ".sidebar-drawer": "All pages", ".toc-drawer": "On this page" };
  for (const [aside, name] of Object.entries(names)) {
    document.querySelector(aside)?.setAttribute("aria-label", name);
  }
  const found = document.querySelector("#search-results");
  if (found && !document.querySelector("h1")) {
    found.before(Object.assign(document.createElement("h1"), { textContent: "Search" }));
  }
  new MutationObserver(paint).observe(document.body, { attributeFilter: ["data-theme"] });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
  // A region that scrolls must be reachable by keyboard.
  for (const box of document.querySelectorAll(".cell_output, article table.docutils, pre, .highlight pre, math[display='block']")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  }
})();
