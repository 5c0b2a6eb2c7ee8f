// Sorting by a click or a key on a heading, and filters from the words of the text columns.
function sortable(table) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const numeric = heading.classList.contains("number");
    const value = (row) => {
      const text = row.cells[column].dataset.value;
      return text === undefined ? null : numeric ? Number(text) : text.toLowerCase();
    };
    heading.querySelector("button").addEventListener("click", () => {
      const first = numeric ? "descending" : "ascending";
      const second = numeric ? "ascending" : "descending";
      const before = heading.getAttribute("aria-sort");
      const order = before === first ? second : before === second ? null : first;
      headings.forEach((each) => each.removeAttribute("aria-sort"));
      if (order) heading.setAttribute("aria-sort", order);
      const sign = order === "descending" ? -1 : 1;
      const compare = (a, b) => {
        const [x, y] = [value(a), value(b)];
        // What is not known comes last in either order.
        if (x === null || y === null) return (x === null) - (y === null);
        return sign * (x < y ? -1 : x > y ? 1 : 0);
      };
      body.append(...(order ? [...original].sort(compare) : original));
    });
  });
}

function filters(place, table, counter) {
  const rows = [...table.tBodies[0].rows];
  const chosen = new Map();
  const apply = () => {
    let shown = 0;
    for (const row of rows) {
      row.hidden = [...chosen].some(([column, value]) => value !== "" && row.cells[column].textContent !== value);
      shown += !row.hidden;
    }
    counter.textContent = `${shown} of ${rows.length} rows`;
  };
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    const name = heading.dataset.name;
    if (!["run", "recipe", "task", "length", "reasoning"].includes(name)) return;
    const values = [...new Set(rows.map((row) => row.cells[column].textContent))];
    if (values.length < 2) return;
    place.append(picker(name, [["", "all"], ...values.map((x) => [x, x])], "", (value) => {
      chosen.set(column, value);
      apply();
    }));
  });
  apply();
}
