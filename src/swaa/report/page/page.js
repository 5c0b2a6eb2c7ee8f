// Starts everything: charts, tables, the choice of a run, the theme.
const charts = { scatter, bars, thought };

for (const run of document.querySelectorAll(".run")) {
  const data = JSON.parse(run.querySelector(".run-data").textContent);
  for (const plot of run.querySelectorAll("[data-chart]")) {
    charts[plot.dataset.chart](plot.closest("section"), plot, data);
  }
  const place = run.querySelector("[data-switch]");
  const panels = [...run.querySelectorAll("[data-panel]")];
  const show = (name) => panels.forEach((panel) => (panel.hidden = panel.dataset.panel !== name));
  if (panels.length > 1) {
    const names = panels.map((panel) => panel.dataset.panel);
    place.append(picker("task", names.map((name) => [name, name]), names[0], show));
    show(names[0]);
  }
}

document.querySelectorAll("table.data").forEach(sortable);
filters(document.querySelector("[data-filters]"), document.getElementById("results-table"), document.querySelector("[data-count]"));
tooltips();

const runChoice = document.getElementById("run-choice");
function showRun() {
  for (const run of document.querySelectorAll(".run")) run.hidden = run.id !== runChoice.value;
  for (const link of document.querySelectorAll("[data-section]")) link.hash = `${runChoice.value}-${link.dataset.section}`;
}
if (runChoice) {
  runChoice.addEventListener("change", showRun);
  showRun();
}

const themes = [["as the system", "light dark", "◐"], ["light", "light", "☀"], ["dark", "dark", "☾"]];
let theme = 0;
const themeButton = document.getElementById("theme");
themeButton.addEventListener("click", () => {
  theme = (theme + 1) % themes.length;
  const [name, scheme, sign] = themes[theme];
  document.documentElement.style.colorScheme = scheme;
  themeButton.textContent = sign;
  themeButton.setAttribute("aria-label", `Theme: ${name}`);
});
