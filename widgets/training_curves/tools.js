// @ts-check
/// <reference path="scales.js" />
// What the reader sets: which tasks are drawn, the smoothing, the axis of losses, and back to all steps.

const MOST = 0.5; // share of the steps that the slider reaches

class Tools {
  root = make("div", "rw-tools");
  legend = make("div", "rw-legend", "", { role: "group", "aria-label": "Tasks" });
  slider = /** @type {HTMLInputElement} */ (make("input", "rw-slider", "", { type: "range", min: "0", max: String(MOST),
    step: "0.005", "aria-label": "Smoothing" }));
  output = make("output", "rw-output");
  box = /** @type {HTMLInputElement} */ (make("input", "rw-box", "", { type: "checkbox" }));
  all = make("button", "rw-button", "All steps", { type: "button", title: "Show all steps again after a drag",
    "aria-disabled": "true" });
  buttons = /** @type {HTMLElement[]} */ ([]);

  /** @param {Model} model @param {{changed: () => void, reset: () => void}} calls */
  constructor(model, calls) {
    this.model = model;
    const [smoothing, scale] = [make("label", "rw-tool", "Smoothing"), make("label", "rw-tool")];
    smoothing.append(this.slider, this.output);
    scale.append(this.box, make("span", "", "Logarithmic loss"));
    this.root.append(this.legend, smoothing, scale, this.all);
    this.slider.addEventListener("input", () => this.set("span", Number(this.slider.value), calls.changed));
    this.box.addEventListener("change", () => this.set("logarithmic", this.box.checked, calls.changed));
    this.all.addEventListener("click", () => calls.reset());
    this.legend.addEventListener("click", (event) => {
      const button = event.target instanceof Element ? event.target.closest("button") : null;
      if (button) this.set("hidden", this.without(String(button.dataset.task), event.altKey), calls.changed);
    });
  }

  /** @param {string} name @param {any} value @param {() => void} changed */
  set(name, value, changed) {
    this.model.set(name, value);
    this.model.save_changes();
    changed();
  }

  /** The tasks hidden when one is clicked; names of tasks of other runs stay. @param {string} task @param {boolean} alone */
  without(task, alone) {
    const hidden = /** @type {string[]} */ (this.model.get("hidden"));
    const others = (this.tasks ?? []).filter((name) => name !== task);
    if (alone) return others.every((name) => hidden.includes(name)) ? [] : others;
    return hidden.includes(task) ? hidden.filter((name) => name !== task) : [...hidden, task];
  }

  /** Says how things are set. @param {Data} data @param {boolean} zoomed */
  draw({ tasks, colours, lines }, zoomed) {
    if (JSON.stringify([tasks, colours]) !== this.drawn) this.drawLegend(tasks, colours);
    const [span, hidden] = [this.model.get("span"), this.model.get("hidden")];
    this.buttons.forEach((button) => button.setAttribute("aria-checked", String(!hidden.includes(button.dataset.task))));
    this.slider.value = String(span);
    this.box.checked = this.model.get("logarithmic");
    const mean = lines.find((line) => line.role === "mean");
    const width = mean ? widthOf(mean, span) : 0;
    const text = width < OFF ? "off" : `mean over ${Math.round(width).toLocaleString("en-US")} steps`;
    write(this.output, mean ? text : "");
    this.slider.setAttribute("aria-valuetext", text);
    this.all.setAttribute("aria-disabled", String(!zoomed));
  }

  /** @param {string[]} tasks @param {string[]} colours */
  drawLegend(tasks, colours) {
    this.tasks = tasks;
    this.drawn = JSON.stringify([tasks, colours]);
    this.buttons = tasks.map((task, at) => {
      const button = make("button", "rw-toggle", "", { type: "button", role: "checkbox", "data-task": task });
      const swatch = draw("svg", "rw-swatch", { width: 26, height: 10, "aria-hidden": "true" });
      swatch.style.setProperty("--rw-colour", colours[at]);
      swatch.append(draw("path", "rw-way", { d: "M1 5H25", "stroke-dasharray": DASHES[earlier(colours, at) % DASHES.length] }));
      button.title = `${task}: click to hide or show, Alt+click to show it alone`;
      button.append(swatch, make("span", "rw-name", task));
      return button;
    });
    this.legend.replaceChildren(...this.buttons);
  }
}
