// Bars with intervals, a panel a task; and scores with and without reasoning, a line a recipe.
function bars(figure, plot, data) {
  const groups = new Map();
  for (const view of data.views) {
    const key = `${view.length} ${view.reasoning}`;
    if (!groups.has(key)) groups.set(key, { length: view.length, reasoning: view.reasoning, views: [] });
    groups.get(key).views.push(view);
  }
  chooser(figure.querySelector(".controls"), [...groups.values()], ["length", "reasoning"], data.labels, (group) => {
    plot.replaceChildren(...group.views.map((view) => {
      const lines = data.recipes.map((name, index) => known(view.score[index]) && barLine(data, view, index));
      const title = element("h3", {}, data.labels.task[view.task] ?? view.task);
      return element("div", { class: "panel" }, title, ...lines.filter(Boolean));
    }));
  });
}

function barLine(data, view, index) {
  const style = { "--c": data.colours[index] };
  const track = element("div", { class: "track" }, element("div", { class: "bar-fill", style: { ...style, width: share(view.score[index]) } }));
  if (known(view.low[index]) && known(view.high[index])) {
    const [low, high] = [view.low[index], view.high[index]];
    track.append(element("div", { class: "span", style: { left: share(low), width: share(high - low) } }));
  }
  const who = element("span", { class: "who" }, dot(data.colours[index]), data.recipes[index]);
  const value = element("span", { class: "value" }, percent(view.score[index]));
  return element("div", { class: "line", "data-tip": scoreNote(data, view, index).join("\n") }, who, track, value);
}

function thought(figure, plot, data) {
  plot.classList.add("wide");
  chooser(figure.querySelector(".controls"), data.thought, ["task", "length"], data.labels, (chosen) => {
    const modes = Object.entries(chosen.modes);
    const lines = data.recipes.map((name, index) => {
      const found = modes.filter(([, column]) => known(column.score[index]));
      return found.length && thoughtLine(data, chosen, found, index);
    });
    const legend = modes.map(([mode]) => element("span", {}, element("i", { class: `mark ${mode}` }), data.labels.reasoning[mode] ?? mode));
    const ticks = [0, 20, 40, 60, 80, 100].map((x) => element("span", { style: { left: `${x}%` } }, String(x)));
    const scale = element("div", { class: "line" }, element("span"), element("div", { class: "scale" }, ...ticks));
    plot.replaceChildren(...lines.filter(Boolean), scale, element("p", { class: "legend" }, ...legend));
  });
}

function thoughtLine(data, chosen, found, index) {
  const style = { "--c": data.colours[index] };
  const track = element("div", { class: "track" });
  const [first, ...others] = found.map(([mode, column]) => ({ mode, column, score: column.score[index] }));
  const all = [first, ...others].map((each) => each.score);
  const [low, high] = [Math.min(...all), Math.max(...all)];
  track.append(element("div", { class: "link", style: { ...style, left: share(low), width: share(high - low) } }));
  for (const { mode, column, score } of [...others, first]) {
    const note = [data.labels.reasoning[mode] ?? mode, ...scoreNote(data, column, index)].join("\n");
    track.append(element("i", {
      class: `mark ${mode}`, style: { ...style, left: share(score) }, tabindex: 0, role: "img",
      "data-tip": note, "aria-label": note.replaceAll("\n", ", "),
    }));
  }
  const gains = element("span", {}, ...others.map(({ mode, column, score }) => {
    const gain = 100 * (score - first.score);
    const part = (count, what) => (count ? `, ${percent(count / column.count[index])} % ${what}` : "");
    const lost = part(column.truncated[index], "cut off") + part(column.unparsed[index], "unparsed");
    const text = ` (${gain < 0 ? "−" : "+"}${Math.abs(gain).toFixed(1)}${lost})`;
    return element("div", {}, element("i", { class: `mark ${mode}` }), element("b", {}, percent(score)), text);
  }));
  const value = element("div", { class: "value" }, element("b", {}, percent(first.score)), gains);
  const who = element("span", { class: "who" }, dot(data.colours[index]), data.recipes[index]);
  return element("div", { class: "line" }, who, track, value);
}
