// Draws a Plotly figure as it is. Panel's own pane is restyled by the page's theme, which moves titles and legends.

const CONFIG = { displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] };

/** @param {{model: any, el: HTMLElement}} host */
export function render({ model, el }) {
  const box = el.appendChild(document.createElement("div"));
  const draw = () => {
    const { data, layout } = JSON.parse(model.figure);
    window.Plotly.react(box, data, { ...layout, width: el.clientWidth || undefined }, CONFIG);
  };
  const observer = new ResizeObserver(() => el.clientWidth && window.Plotly.relayout(box, { width: el.clientWidth }));
  draw();
  observer.observe(el);
  model.on("figure", draw);
  model.on("remove", () => {
    observer.disconnect();
    window.Plotly.purge(box);
  });
}
