// The table: conditions, order, pages, keys, copies.

const PAGE = 50;
const state = {conditions: [], sort: null, page: 0, visible: [], view: [], active: 0, selected: null};

function setUpTable(onChoose) {
  const names = content.table.columns.map((column) => column.name);
  state.visible = content.table.first.filter(has);
  byId('filter-column').append(...names.map((name) => el('option', {value: name}, spoken(name))));
  byId('filter-column').value = state.visible.find((n) => columns.get(n).role === 'outcome') ?? names[0];
  byId('filter-column').addEventListener('change', offerOperators);
  byId('filter-operator').addEventListener('change', offerValues);
  byId('filter-form').addEventListener('submit', (event) => { event.preventDefault(); addCondition(); });
  byId('filter-clear').addEventListener('click', () => { mapState.chosen = null; setConditions([]); drawMap(setCell); });
  byId('previous').addEventListener('click', () => turn(-1));
  byId('next').addEventListener('click', () => turn(1));
  byId('copy-csv').addEventListener('click', () => copyText(csv(), byId('copied')));
  byId('save-csv').addEventListener('click', saveCsv);
  for (const button of document.querySelectorAll('[data-copy]')) {
    button.addEventListener('click', () => copyText(byId(button.dataset.copy).textContent, byId('copied')));
  }
  byId('columns').append(...names.map((name) => {
    const box = el('input', {type: 'checkbox', value: name, checked: state.visible.includes(name), onchange: () => {
      state.visible = names.filter((n) => byId('columns').querySelector(`input[value="${CSS.escape(n)}"]`).checked);
      drawTable();
    }});
    return el('label', {}, box, ' ', labelled(name));
  }));
  const body = byId('rows').tBodies[0];
  body.addEventListener('keydown', (event) => onKey(event, onChoose));
  body.addEventListener('click', (event) => {
    const line = event.target.closest('tr');
    if (line) { state.active = Number(line.dataset.place); onChoose(state.view[state.page * PAGE + state.active]); drawTable(); }
  });
  offerOperators();
  refresh();
}

function offerOperators() {
  const {type} = columns.get(byId('filter-column').value) ?? {type: 'text'};
  byId('filter-operator').replaceChildren(...OFFERED[type].map((key) => el('option', {value: key}, OPERATORS[key][0])));
  offerValues();
}

function offerValues() {
  const column = columns.get(byId('filter-column').value);
  byId('filter-value-label').hidden = WITHOUT_VALUE.includes(byId('filter-operator').value);
  const few = column?.type === 'text' && column.values.length <= numberOfRows ? [...new Set(column.values)] : [];
  byId('filter-values').replaceChildren(...few.filter((v) => v !== null).slice(0, 50).map((v) => el('option', {value: v})));
}

function addCondition() {
  byId('filter-error').textContent = '';
  try {
    const found = readCondition(byId('filter-column').value, byId('filter-operator').value, byId('filter-value').value);
    setConditions([...state.conditions, found]);
    byId('filter-value').value = '';
  } catch (error) {
    byId('filter-error').textContent = error.message;
  }
}

// Conditions of a cell of the map take the place of those on its columns.
function setCell(conditions, names) {
  setConditions([...state.conditions.filter((c) => !names.includes(c.name)), ...conditions]);
}

function setConditions(conditions) {
  state.conditions = conditions;
  state.page = state.active = 0;
  refresh();
}

function refresh() {
  const tests = state.conditions.map(testOf);
  const view = [];
  for (let row = 0; row < numberOfRows; row++) if (tests.every((test) => test(row))) view.push(row);
  if (state.sort) {
    const values = valuesOf(state.sort.name);
    const sign = state.sort.descending ? -1 : 1;
    view.sort((a, b) => { // empty cells are last in both directions
      const [left, right] = [values[a], values[b]];
      if (left === null || right === null) return Number(left === null) - Number(right === null);
      return sign * compare(left, right);
    });
  }
  state.view = view;
  state.page = Math.min(state.page, Math.max(0, Math.ceil(view.length / PAGE) - 1));
  drawTable();
}

function drawTable() {
  const {view, visible, conditions, page} = state;
  const runs = valuesOf('run');
  const {all_rows: all, all_runs: allRuns} = content.table;
  const part = all > numberOfRows ? ` This page holds ${grouped(numberOfRows)} of the zoo's ${grouped(all)} rows: ${grouped(content.table.runs)} of ${counted(allRuns, 'run')}, drawn at random (seed ${content.seed}).` : '';
  byId('count').textContent = `${grouped(view.length)} of ${counted(numberOfRows, 'row')}, ${counted(new Set(view.map((row) => runs[row])).size, 'run')}.${part}`;
  byId('python').textContent = pythonCode(conditions, state.sort);
  byId('command').textContent = commandCode(conditions, state.sort, visible);
  byId('conditions').replaceChildren(...conditions.map((condition, place) => el('li', {}, inWords(condition), ' ',
    el('button', {type: 'button', 'aria-label': `Remove ${inWords(condition)}`, onclick: () => setConditions(conditions.filter((_, i) => i !== place))}, '✕'))));
  byId('filter-clear').disabled = !conditions.length;
  byId('rows').tHead.replaceChildren(el('tr', {}, ...visible.map(headOf)));
  const here = view.slice(page * PAGE, (page + 1) * PAGE);
  state.active = Math.max(0, Math.min(state.active, here.length - 1));
  byId('rows').tBodies[0].replaceChildren(...here.map(lineOf));
  byId('rows').setAttribute('aria-rowcount', String(view.length + 1));
  if (!here.length) byId('rows').tBodies[0].append(el('tr', {}, el('td', {colspan: visible.length || 1, class: 'muted'}, numberOfRows ? 'No row fits all conditions.' : 'This zoo has no rows yet.')));
  const pages = Math.max(1, Math.ceil(view.length / PAGE));
  byId('place').textContent = `page ${page + 1} of ${grouped(pages)}`;
  byId('previous').disabled = page === 0;
  byId('next').disabled = page + 1 >= pages;
  byId('copied').textContent = '';
}

function headOf(name) {
  const sorted = state.sort?.name === name ? (state.sort.descending ? 'descending' : 'ascending') : 'none';
  const arrow = {ascending: ' ▲', descending: ' ▼', none: ''}[sorted];
  const next = () => {
    state.sort = sorted === 'none' ? {name, descending: false} : sorted === 'ascending' ? {name, descending: true} : null;
    refresh();
    byId('rows').tHead.querySelector(`button[value="${CSS.escape(name)}"]`)?.focus();
  };
  const kind = columns.get(name).type === 'number' ? 'number' : '';
  return el('th', {scope: 'col', 'aria-sort': sorted, class: kind}, el('button', {type: 'button', value: name, onclick: next}, labelled(name) + arrow));
}

function lineOf(row, place) {
  const cells = state.visible.map((name) => {
    const value = valuesOf(name)[row];
    const text = shownValue(value);
    const kind = columns.get(name).type === 'number' ? 'number' : name === 'status' ? `status ${value}` : null;
    return el('td', {class: kind, title: text.length > 28 ? text : null}, text.length > 28 ? `${text.slice(0, 27)}…` : text);
  });
  const at = state.page * PAGE + place;
  return el('tr', {'data-place': place, tabindex: place === state.active ? '0' : '-1', 'aria-rowindex': at + 2,
    'aria-selected': String(row === state.selected)}, ...cells);
}

function turn(by) {
  state.page += by;
  state.active = 0;
  drawTable();
}

function onKey(event, onChoose) {
  const lines = byId('rows').tBodies[0].querySelectorAll('tr[data-place]');
  const last = lines.length - 1;
  const to = {ArrowDown: state.active + 1, ArrowUp: state.active - 1, Home: 0, End: last}[event.key];
  const pages = Math.ceil(state.view.length / PAGE);
  if (event.key === 'Enter' || event.key === ' ') {
    event.preventDefault();
    onChoose(state.view[state.page * PAGE + state.active]);
    drawTable();
    return; // the focus is on the model now
  } else if ((event.key === 'PageDown' || to > last) && state.page + 1 < pages) {
    turn(1);
  } else if ((event.key === 'PageUp' || to < 0) && state.page > 0) {
    turn(-1);
    if (to < 0) { state.active = PAGE - 1; drawTable(); }
  } else if (to === undefined) {
    return;
  } else {
    state.active = Math.max(0, Math.min(to, last));
    lines.forEach((line, place) => line.setAttribute('tabindex', place === state.active ? '0' : '-1'));
  }
  event.preventDefault();
  byId('rows').tBodies[0].querySelector('tr[tabindex="0"]')?.focus();
}

// A text that a spreadsheet would take for a formula gets an apostrophe in front; numbers stay numbers.
function csvCell(value) {
  if (value === null) return '';
  if (typeof value !== 'string') return String(value);
  const safe = /^[=+\-@\t\r\n]/.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

function csv() {
  const lines = [state.visible, ...state.view.map((row) => state.visible.map((name) => valuesOf(name)[row]))];
  return lines.map((cells) => cells.map(csvCell).join(',')).join('\r\n') + '\r\n';
}

function saveCsv() {
  const link = el('a', {download: 'rows.csv', href: URL.createObjectURL(new Blob([csv()], {type: 'text/csv'}))});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}
