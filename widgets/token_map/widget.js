// @ts-check
/// <reference path="map.js" />
// A map of tokens: points coloured by what they are, a lasso, a legend, and what each point is on pointing at it.

/** @param {{model: Model, el: HTMLElement}} host */
function render({ model, el }) {
  const map = new TokenMap(model);
  const [redraw, reselect] = [() => map.later(false), () => map.showSelection()];
  const calls = Object.fromEntries([...DATA_TRAITS.map((name) => [name, redraw]), ["points", () => map.later(true)],
    ["selected", reselect], ["hidden", reselect]]);
  const observer = new ResizeObserver(() => (map.plot.scatter ? map.plot.resize() : map.drawPoints()));
  const unwatch = onTheme(map.root, () => map.paint());
  el.append(map.root);
  map.draw();
  for (const [name, call] of Object.entries(calls)) model.on(`change:${name}`, call);
  observer.observe(map.stage);
  return () => {
    observer.disconnect();
    unwatch();
    for (const [name, call] of Object.entries(calls)) model.off(`change:${name}`, call);
    map.stop();
  };
}

export default { render };
