// Score over cost, with the Pareto front. Labels find a free place; a thin line leads back from a far one.
function scatter(figure, plot, data) {
  let view = null;
  let measure = Object.keys(data.measures)[0];
  const draw = atEveryWidth(plot, (width) => drawScatter(plot, data, view, measure, width));
  const controls = figure.querySelector(".controls");
  chooser(controls, data.views, ["task", "length", "reasoning"], data.labels, (chosen) => {
    view = chosen;
    draw();
  });
  const measures = Object.entries(data.measures);
  if (measures.length > 1) {
    controls.append(picker("cost", measures, measure, (value) => {
      measure = value;
      draw();
    }));
  }
}

function drawScatter(plot, data, view, measure, width) {
  const narrow = width < 560;
  const height = narrow ? 340 : 430;
  const edge = { left: 44, right: narrow ? 14 : 24, top: 14, bottom: 46 };
  const cost = data.costs[view.length][measure];
  const shown = data.recipes.map((_, i) => i).filter((i) => known(cost[i]) && known(view.score[i]));
  if (!shown.length) {
    plot.replaceChildren(element("p", { class: "missing" }, "No recipe has both a score and this cost here."));
    return;
  }
  const costs = shown.map((i) => cost[i]);
  const [least, most] = [Math.min(...costs), Math.max(...costs)];
  // Costs that are all but equal must not look far apart.
  const span = Math.max(most - least, 0.1 * most) || 1;
  const [from, to] = [Math.max(least - 0.12 * span, 0), most + (narrow ? 0.12 : 0.2) * span];
  const x = (value) => edge.left + ((value - from) / (to - from)) * (width - edge.left - edge.right);
  const y = (value) => height - edge.bottom - value * (height - edge.top - edge.bottom);
  const svg = drawn("svg", {
    height, viewBox: `0 0 ${width} ${height}`, role: "group",
    "aria-label": `Score over ${data.measures[measure]}; ${shown.length} recipes, the table above has the numbers`,
  });
  axes(svg, { x, y, from, to, width, height, edge, measure, title: data.measures[measure] });
  const lines = frontLine(svg, view.front[measure].map((i) => [x(cost[i]), y(view.score[i])]), { width, height, edge });
  if (shown.includes(data.full)) {
    const [fx, fy] = [x(cost[data.full]), y(view.score[data.full])];
    svg.append(drawn("line", { class: "reference", x1: fx, x2: fx, y1: edge.top, y2: height - edge.bottom }));
    svg.append(drawn("line", { class: "reference", x1: edge.left, x2: width - edge.right, y1: fy, y2: fy }));
    lines.push(boxOf(fx - 1, edge.top, 2, height), boxOf(edge.left, fy - 1, width, 2));
  }
  const points = shown.map((i) => ({ i, x: x(cost[i]), y: y(view.score[i]), name: data.recipes[i] }));
  for (const point of points) {
    const [low, high] = [view.low[point.i], view.high[point.i]];
    if (!known(low) || !known(high)) continue;
    const style = { "--c": data.colours[point.i] };
    svg.append(drawn("line", { class: "whisker", style, x1: point.x, x2: point.x, y1: y(low), y2: y(high) }));
    lines.push(boxOf(point.x - 1, y(high), 2, y(low) - y(high)));
  }
  const onFront = new Set(view.front[measure]);
  const named = narrow ? points.filter((p) => onFront.has(p.i) || p.i === data.full) : points;
  const area = boxOf(edge.left, edge.top - 8, width - edge.left - edge.right + 8, height - edge.top - edge.bottom + 8);
  for (const place of placeLabels(points, named, area, lines)) {
    const style = { "--c": data.colours[place.point.i] };
    if (Math.abs(place.up) > 6) {
      const at = { x1: place.point.x, y1: place.point.y, x2: place.x, y2: place.y };
      svg.append(drawn("line", { class: "leader", style, ...at }));
    }
    const anchor = place.side > 0 ? "start" : "end";
    svg.append(drawn("text", { class: "name", x: place.x, y: place.y + 4, "text-anchor": anchor }, place.point.name));
  }
  for (const point of points) {
    const note = [...scoreNote(data, view, point.i), `${data.measures[measure]}: ${costText[measure](cost[point.i])}`];
    if (onFront.has(point.i)) note.push("on the Pareto front");
    const shared = {
      class: "point", style: { "--c": data.colours[point.i] }, tabindex: 0, role: "img",
      "aria-label": note.join(", "), "data-tip": note.join("\n"), "data-recipe": point.name,
    };
    const r = 6.5;
    const diamond = `M${point.x} ${point.y - r - 2}l${r + 2} ${r + 2}l${-r - 2} ${r + 2}l${-r - 2} ${-r - 2}z`;
    svg.append(point.i === data.full ? drawn("path", { ...shared, d: diamond }) : drawn("circle", { ...shared, cx: point.x, cy: point.y, r }));
  }
  plot.replaceChildren(svg);
  if (narrow) {
    const entries = points.map((p) => element("span", {}, dot(data.colours[p.i]), p.name));
    plot.append(element("p", { class: "legend" }, ...entries));
  }
}

function axes(svg, { x, y, from, to, width, height, edge, measure, title }) {
  for (const value of [0, 0.2, 0.4, 0.6, 0.8, 1]) {
    svg.append(drawn("line", { class: value ? "grid" : "axis-line", x1: edge.left, x2: width - edge.right, y1: y(value), y2: y(value) }));
    svg.append(drawn("text", { x: edge.left - 8, y: y(value) + 4, "text-anchor": "end" }, `${100 * value}`));
  }
  const rough = (to - from) / Math.max(3, Math.floor(width / 130));
  const ten = 10 ** Math.floor(Math.log10(rough));
  const step = ten * ([1, 2, 5].find((x) => x * ten >= rough) ?? 10);
  for (let n = Math.ceil(from / step); n * step <= to; n++) {
    const at = x(n * step);
    svg.append(drawn("line", { class: "axis-line", x1: at, x2: at, y1: height - edge.bottom, y2: height - edge.bottom + 4 }));
    svg.append(drawn("text", { x: at, y: height - edge.bottom + 18, "text-anchor": "middle" }, costText[measure](n * step)));
  }
  const middle = edge.left + (width - edge.left - edge.right) / 2;
  svg.append(drawn("text", { x: middle, y: height - 6, "text-anchor": "middle" }, title));
}

// Draws the steps of the front and the region that it dominates; returns what labels should rather not lie on.
function frontLine(svg, corners, { width, height, edge }) {
  const [bottom, right] = [height - edge.bottom, width - edge.right];
  let path = `M${corners[0][0]} ${corners[0][1]}`;
  const lines = [];
  corners.forEach(([px, py], n) => {
    const next = corners[n + 1] ?? [right, py];
    path += `H${next[0]}V${next[1]}`;
    lines.push(boxOf(px, py - 1, next[0] - px, 2), boxOf(next[0] - 1, next[1], 2, py - next[1]));
  });
  svg.append(drawn("path", { class: "reached", d: `${path}V${bottom}H${corners[0][0]}Z` }));
  svg.append(drawn("path", { class: "front", d: path }));
  return lines;
}
