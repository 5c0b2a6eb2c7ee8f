// Select boxes, and the choice of one view among many by its length, task and kind of reasoning.
function picker(label, options, value, changed) {
  const box = element("select", {}, ...options.map(([key, text]) => element("option", { value: key }, text)));
  box.value = value;
  box.addEventListener("change", () => changed(box.value));
  return element("label", { class: "pick" }, element("span", {}, label), box);
}

// Makes a box for each key of the views with more than one value; calls back with the view that fits.
function chooser(place, views, keys, labels, changed) {
  const chosen = Object.fromEntries(keys.map((key) => [key, String(views[0][key])]));
  if (keys.includes("length")) chosen.length = String(views[views.length - 1].length);
  const fits = (view, wanted) => wanted.every((key) => String(view[key]) === chosen[key]);
  const pick = (kept) => {
    // Where the combination does not exist, what was chosen last is kept and the rest gives way.
    const view = views.find((each) => fits(each, keys)) ?? views.find((each) => fits(each, [kept]));
    for (const key of keys) chosen[key] = String(view[key]);
    for (const [key, box] of Object.entries(boxes)) box.value = chosen[key];
    changed(view);
  };
  const boxes = {};
  for (const key of keys) {
    const values = [...new Set(views.map((view) => String(view[key])))];
    if (values.length < 2) continue;
    const label = picker(key, values.map((x) => [x, labels[key][x] ?? x]), chosen[key], (value) => {
      chosen[key] = value;
      pick(key);
    });
    boxes[key] = label.querySelector("select");
    place.append(label);
  }
  pick(keys[0]);
}

// Draws again whenever the width changes, also from none (a run that was not shown).
function atEveryWidth(plot, draw) {
  let width = 0;
  new ResizeObserver(() => {
    const now = plot.clientWidth;
    if (now && now !== width) draw((width = now));
  }).observe(plot);
  return () => width && draw(width);
}
