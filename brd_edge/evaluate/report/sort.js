// Sorts a table by the column whose heading is pressed; without scripts it stays in the order of the recipe.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const value = (row, key) => JSON.parse(row.dataset.sort)[key];
  for (const heading of table.querySelectorAll("th[data-key]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const falling = heading.getAttribute("aria-sort") === "ascending";
      for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const sorted = [...rows].sort((first, second) => {
        const [a, b] = [value(first, heading.dataset.key), value(second, heading.dataset.key)];
        // what was not measured comes last, whichever way
        if (a === null || b === null) return (a === null) - (b === null);
        return falling ? b - a : a - b;
      });
      body.append(...sorted);
    });
  }
}
