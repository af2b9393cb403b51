// @ts-check
// Draws a Plotly figure as it is. Panel's own pane is restyled by the page's theme, which moves titles and legends.

const CONFIG = { displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] };

/** Plotly's rules, which it writes into the document's head, where they do not reach a shadow root. */
function styles() {
  const own = /** @type {HTMLStyleElement | null} */ (document.getElementById("plotly.js-style-global"));
  const style = document.createElement("style");
  style.textContent = [...(own?.sheet?.cssRules ?? [])].map((rule) => rule.cssText).join("\n");
  return style;
}

/** @param {{model: {get: (name: string) => any, on: Function, off: Function}, el: HTMLElement}} host */
function render({ model, el }) {
  const { Plotly } = /** @type {any} */ (window);
  const box = document.createElement("div");
  const draw = () => {
    const { data, layout } = JSON.parse(model.get("figure"));
    Plotly.react(box, data, { ...layout, width: el.clientWidth || undefined }, CONFIG);
  };
  const observer = new ResizeObserver(() => el.clientWidth && Plotly.relayout(box, { width: el.clientWidth }));
  el.append(styles(), box);
  draw();
  observer.observe(el);
  model.on("change:figure", draw);
  return () => {
    observer.disconnect();
    model.off("change:figure", draw);
    Plotly.purge(box);
  };
}

export default { render };
