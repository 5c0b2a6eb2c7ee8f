// Elements and numbers. Text always goes in as text, never as markup.
const svgNames = "http://www.w3.org/2000/svg";

function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

function drawn(name, attributes = {}, ...children) {
  return filled(document.createElementNS(svgNames, name), attributes, children);
}

function filled(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "style") for (const [name, x] of Object.entries(value)) node.style.setProperty(name, x);
    else if (value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

function dot(colour) {
  return element("i", { class: "dot", style: { "--c": colour } });
}

const known = (x) => x !== null && x !== undefined;
const percent = (x) => (known(x) ? (100 * x).toFixed(1) : "–");
const share = (x) => `${100 * Math.min(Math.max(x, 0), 1)}%`;

function bytes(x) {
  let power = 0;
  for (; x >= 999.5 && power < 4; power++) x /= 1000;
  return `${Number(x.toPrecision(3))} ${["", "k", "M", "G", "T"][power]}B`;
}

const costText = {
  prefill_seconds: (x) => (x >= 1 || x === 0 ? `${Number(x.toPrecision(3))} s` : `${Number((1000 * x).toPrecision(3))} ms`),
  prefill_flops_ratio: (x) => `${Number(x.toPrecision(3))}x`,
  kv_bytes: bytes,
};

// Name, score, interval and samples of one recipe in a view, for a tooltip.
function scoreNote(data, view, index) {
  const lines = [data.recipes[index], `score ${percent(view.score[index])} %`];
  if (known(view.low[index]) && known(view.high[index])) {
    lines[1] += ` (95 %: ${percent(view.low[index])}–${percent(view.high[index])})`;
  }
  const lost = { unparsed: view.unparsed[index], "cut off": view.truncated[index] };
  const parts = Object.entries(lost).filter(([, count]) => count).map(([what, count]) => `${count} ${what}`);
  lines.push([`${view.count[index]} samples`, ...parts].join(", "));
  return lines;
}
