// @ts-check
/// <reference path="base.js" />
/// <reference path="viewer.js" />
// Attention of many heads: a grid of small maps, one of them large, or two sides compared. Python sends a map when it
// is on screen (answers.py says how), and what is on screen can be saved as SVG or PDF.

/** @param {{model: Model, el: HTMLElement}} host */
function render({ model, el }) {
  const view = new Viewer(model);
  const observer = new ResizeObserver(() => view.later());
  const answered = () => view.fetcher.receive();
  const follow = () => view.follow();
  const unwatch = onTheme(view.root, view.later);
  el.append(view.root);
  view.update();
  const calls = Object.fromEntries([...TRAITS.map((name) => [name, view.later]), ["token", follow], ["role", follow],
    ["_parts", answered]]);
  for (const [name, call] of Object.entries(calls)) model.on(`change:${name}`, call);
  observer.observe(view.root);
  return () => {
    observer.disconnect();
    unwatch();
    view.later.stop();
    view.seen.disconnect();
    view.fetcher.stop();
    for (const [name, call] of Object.entries(calls)) model.off(`change:${name}`, call);
    view.root.remove();
  };
}

export default { render };
