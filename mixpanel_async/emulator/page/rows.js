/** Keyboard navigation in a list of rows: one Tab stop, and arrow keys between rows. */

const STEPS = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };

/** Let arrow keys move the focus between the `.row` buttons of a list. `onMove` is called with the focused row. */
export function enableArrowKeys(list, onMove = () => {}) {
  list.addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    const row = event.target.closest?.(".row");
    if (step === undefined || row === null || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const rows = [...list.querySelectorAll(".row")];
    const index = Math.max(0, Math.min(rows.length - 1, rows.indexOf(row) + step));
    rows[index].focus();
    onMove(rows[index]);
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

/** Ensure that exactly one row is a Tab stop after rows have changed. */
export function keepTabStop(list) {
  const stops = list.querySelectorAll('.row[tabindex="0"]');
  if (stops.length === 1) return;
  const first = list.querySelector('.row[aria-current="true"]') ?? list.querySelector(".row");
  if (first !== null) makeTabStop(list, first);
}
