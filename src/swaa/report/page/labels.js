// Free places for the names of points: greedy, in several orders, and the cheapest outcome counts.
const boxOf = (x, y, w, h) => ({ x, y, w, h });
const overlap = (a, b) => a.x < b.x + b.w && b.x < a.x + a.w && a.y < b.y + b.h && b.y < a.y + a.h;

function placeLabels(points, named, area, lines) {
  const pen = document.createElement("canvas").getContext("2d");
  pen.font = `12.5px ${getComputedStyle(document.body).fontFamily}`;
  const widths = new Map(named.map((point) => [point, pen.measureText(point.name).width + 4]));
  const orders = [(a, b) => a.x - b.x, (a, b) => b.x - a.x, (a, b) => a.y - b.y, (a, b) => b.y - a.y];
  const tried = orders.map((order) => placeInOrder([...named].sort(order), points, widths, area, lines));
  return tried.reduce((best, each) => (each.cost < best.cost ? each : best)).places;
}

function placeInOrder(order, points, widths, area, lines) {
  const markers = points.map((p) => ({ point: p, ...boxOf(p.x - 9, p.y - 9, 18, 18) }));
  const taken = [...markers];
  const places = [];
  let cost = 0;
  for (const point of order) {
    const w = widths.get(point);
    let best = null;
    for (let up = -120; up <= 120; up += 4) {
      for (const side of [1, -1]) {
        const x = point.x + side * (11 + 0.2 * Math.abs(up));
        const y = point.y + up;
        const box = boxOf(side > 0 ? x : x - w, y - 8, w, 16);
        const out = box.x < area.x || box.y < area.y || box.x + w > area.x + area.w || box.y + 16 > area.y + area.h;
        const hit = taken.filter((other) => other.point !== point && overlap(box, other)).length;
        const leader = boxOf(Math.min(x, point.x), Math.min(y, point.y), Math.abs(x - point.x), Math.abs(up));
        const crossed = Math.abs(up) > 6 ? taken.filter((o) => o.point !== point && overlap(leader, o)).length : 0;
        const crossing = lines.filter((line) => overlap(box, line)).length;
        const price = 1000 * (hit + out) + 60 * crossed + 8 * crossing + Math.abs(up) - side;
        if (!best || price < best.price) best = { price, point, side, up, x, y, box };
      }
    }
    cost += best.price;
    places.push(best);
    taken.push(best.box);
  }
  return { cost, places };
}
