/** The keyboard in a list of rows: one stop for the Tab key, arrows between the rows. */

const STEPS = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };

/** Let the arrow keys walk over the `.row` buttons of a list; `onWalk` is told of the row that has the focus then. */
export function walkable(list, onWalk = () => {}) {
  list.addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    const row = event.target.closest?.(".row");
    if (step === undefined || row === null || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const rows = [...list.querySelectorAll(".row")];
    const index = Math.max(0, Math.min(rows.length - 1, rows.indexOf(row) + step));
    rows[index].focus();
    onWalk(rows[index]);
  });
  list.addEventListener("focusin", (event) => {
    const row = event.target.closest?.(".row");
    if (row) makeTabStop(list, row);
  });
}

function makeTabStop(list, row) {
  for (const other of list.querySelectorAll('.row[tabindex="0"]')) other.tabIndex = -1;
  row.tabIndex = 0;
}

/** See to it that the Tab key finds exactly one row after rows came and went. */
export function keepTabStop(list) {
  const stops = list.querySelectorAll('.row[tabindex="0"]');
  if (stops.length === 1) return;
  const first = list.querySelector('.row[aria-current="true"]') ?? list.querySelector(".row");
  if (first !== null) makeTabStop(list, first);
}
