// @ts-check
/// <reference path="curves.js" />
// Live curves of a fine-tune: losses, held-out accuracy, and what was measured meanwhile, a colour a task.

/** @param {{model: Model, el: HTMLElement}} host */
function render({ model, el }) {
  const curves = new Curves(model);
  const reload = together(() => curves.load());
  const watched = [...DATA_TRAITS, ...Object.keys(SAID), "span", "logarithmic", "hidden"].map((name) => `change:${name}`);
  const observer = new ResizeObserver(() => curves.draw());
  el.append(curves.root);
  curves.load();
  for (const event of watched) model.on(event, reload);
  observer.observe(curves.root);
  return () => {
    observer.disconnect();
    for (const event of watched) model.off(event, reload);
    reload.stop();
    curves.root.remove();
  };
}

export default { render };
