// The map: cells of two columns, coloured by a third or by how many runs there are.

const MOST = 60; // cells along an axis of texts
const COUNT = '(runs)';
const SHARE = '(share of runs not ok)';
const PHASES = ['I', 'II', 'III', 'IV-A', 'IV-B', 'diverged'];
const COLOURS = ['#4e79a7', '#f28e2b', '#59a14f', '#e15759', '#b07aa1', '#9c755f', '#edc948', '#76b7b2', '#ff9da7', '#bab0ac'];

function themed() {
  const style = getComputedStyle(document.documentElement);
  return (name) => style.getPropertyValue(`--${name}`).trim();
}

// A chart of charts.py with texts that begin with @ replaced, parameters set, data put in.
function filled(name, texts, parameters, datasets) {
  const colour = themed();
  const known = {'@accent': colour('accent'), '@second': colour('second'), '@third': colour('third'), '@paper': colour('paper'), ...texts};
  const replaced = (part) => {
    if (typeof part === 'string') return part in known ? known[part] : part;
    if (Array.isArray(part)) return part.map(replaced);
    if (part && typeof part === 'object') return Object.fromEntries(Object.entries(part).map(([k, v]) => [k, replaced(v)]));
    return part;
  };
  const spec = replaced(content.charts[name]);
  for (const parameter of spec.params ?? []) if (parameter.name in parameters) parameter.value = parameters[parameter.name];
  return {...spec, datasets};
}

// Expressions are interpreted (ast), not compiled: the policy of the page forbids code made from text.
async function drawChart(node, spec) {
  const colour = themed();
  const axis = {labelColor: colour('ink'), titleColor: colour('ink'), domainColor: colour('line'), tickColor: colour('line'),
    gridColor: colour('line'), labelFont: 'system-ui', titleFont: 'system-ui', labelFontSize: 12, titleFontSize: 13, titleFontWeight: 500};
  const legend = {labelColor: colour('ink'), titleColor: colour('ink'), labelFont: 'system-ui', titleFont: 'system-ui', titleFontWeight: 500};
  const config = {background: null, view: {stroke: null}, axis, legend, font: 'system-ui'};
  const options = {ast: true, actions: false, renderer: 'svg', defaultStyle: false, tooltip: showTip, config};
  node.view?.finalize();
  const found = await vegaEmbed(node, spec, options);
  node.view = found.view;
  return found.view;
}

function showTip(handler, event, item) {
  const tip = byId('tip') ?? document.body.appendChild(el('div', {id: 'tip', 'aria-hidden': 'true'}));
  const says = item?.datum?.says;
  tip.hidden = !says;
  if (!says) return;
  tip.textContent = says;
  tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8)}px`;
}

// An axis: its labels, the place of each row on it (-1 for none), the conditions that say "here".
function axisOf(name) {
  const values = valuesOf(name);
  const {type} = columns.get(name);
  const finite = type === 'number' ? (v) => Number.isFinite(v) : (v) => v !== null;
  const distinct = [...new Set(values.filter((v) => v !== null && finite(v)))].sort(compare);
  if (type === 'number' && distinct.length > content.axes.cells) return binned(name, values, distinct);
  if (content.axes.small_on_top.includes(name)) distinct.reverse();
  const kept = distinct.slice(0, MOST);
  const at = new Map(kept.map((value, place) => [value, place]));
  const operator = (place) => (type === 'truth' ? {name, operator: kept[place] ? 'yes' : 'no'} : {name, operator: 'eq', value: kept[place]});
  return {
    name, labels: kept.map(shownValue), more: distinct.length - kept.length, binned: false,
    place: (row) => (values[row] === null ? -1 : (at.get(values[row]) ?? -1)),
    conditions: (place) => [operator(place)],
  };
}

// Twelve bins of equal width, in the logarithm where the values span more than two decades; edges of three digits.
function binned(name, values, distinct) {
  const low = distinct[0], high = distinct[distinct.length - 1], bins = 12;
  const logarithmic = low > 0 && high / low > 100;
  const edge = (i) => (logarithmic ? low * (high / low) ** (i / bins) : low + ((high - low) * i) / bins);
  const inner = Array.from({length: bins - 1}, (_, i) => Number(edge(i + 1).toPrecision(3)));
  const edges = [...new Set(inner)].sort((a, b) => a - b);
  if (content.axes.small_on_top.includes(name)) edges.reverse();
  const down = edges.length > 1 && edges[0] > edges[1];
  const place = (row) => {
    const value = values[row];
    if (value === null || !Number.isFinite(value)) return -1;
    const behind = edges.findIndex((e) => (down ? value >= e : value < e));
    return behind < 0 ? edges.length : behind;
  };
  const between = (i) => { // [from, to), null for an open side
    const before = i > 0 ? edges[i - 1] : null, after = i < edges.length ? edges[i] : null;
    return down ? [after, before] : [before, after];
  };
  const text = ([from, to]) => (from === null ? `< ${shownNumber(to)}` : to === null ? `≥ ${shownNumber(from)}` : `${shownNumber(from)} to ${shownNumber(to)}`);
  return {
    name, labels: Array.from({length: edges.length + 1}, (_, i) => text(between(i))), more: 0, binned: true, place,
    conditions: (i) => {
      const [from, to] = between(i);
      const lower = {name, operator: from === null ? 'known' : 'ge', value: from ?? undefined};
      return to === null ? [lower] : [...(from === null ? [] : [lower]), {name, operator: 'lt', value: to}];
    },
  };
}

// Of every run the last row that has a value in this column (and is ok, for numbers): run key -> row.
function lastRows(name) {
  const values = has(name) ? valuesOf(name) : null;
  const number = values && columns.get(name).type === 'number';
  const runs = valuesOf('run'), variants = valuesOf('variant'), epochs = valuesOf('epoch'), status = valuesOf('status');
  const last = new Map();
  for (let row = 0; row < numberOfRows; row++) {
    if (values && (values[row] === null || (number && (status[row] !== 'ok' || !Number.isFinite(values[row]))))) continue;
    const key = `${variants[row]}\n${runs[row]}`;
    const known = last.get(key);
    if (known === undefined || epochs[row] >= epochs[known]) last.set(key, row);
  }
  return [...last.values()];
}

const worst = new Map(); // run key -> whether no row of it is other than ok
function isOk(row) {
  if (!worst.size) {
    const runs = valuesOf('run'), variants = valuesOf('variant'), status = valuesOf('status');
    for (let i = 0; i < numberOfRows; i++) {
      const key = `${variants[i]}\n${runs[i]}`;
      worst.set(key, (worst.get(key) ?? true) && status[i] === 'ok');
    }
  }
  return worst.get(`${valuesOf('variant')[row]}\n${valuesOf('run')[row]}`);
}

// Cells with rows, by place: {x, y, value or name, runs, outlier, bad}.
function cellsOf(x, y, name) {
  const cells = new Map();
  const values = has(name) ? valuesOf(name) : null;
  const kind = !values ? 'number' : columns.get(name).type;
  for (const row of lastRows(name)) {
    const [i, j] = [x.place(row), y.place(row)];
    if (i < 0 || j < 0) continue;
    const key = `${i} ${j}`;
    if (!cells.has(key)) cells.set(key, {i, j, all: []});
    cells.get(key).all.push(values ? values[row] : name === SHARE ? Number(!isOk(row)) : 1);
  }
  for (const cell of cells.values()) {
    cell.runs = cell.all.length;
    const sum = cell.all.reduce((a, b) => a + Number(b), 0);
    if (kind === 'text' || kind === 'large') cell.name = mostFrequent(cell.all);
    else cell.value = name === COUNT ? sum : sum / cell.runs;
  }
  return cells;
}

function mostFrequent(names) {
  const counts = new Map();
  for (const name of names) counts.set(name, (counts.get(name) ?? 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1] || rank(a[0]) - rank(b[0]) || compare(a[0], b[0]))[0][0];
}
const rank = (name) => (PHASES.includes(name) ? PHASES.indexOf(name) : PHASES.length);

// Lines between neighbouring cells of different phase, and where each region has its name.
function phaseLines(cells) {
  const at = (i, j) => cells.get(`${i} ${j}`)?.name;
  const lines = [], names = [], seen = new Set();
  for (const {i, j, name} of cells.values()) {
    if (at(i + 1, j) && at(i + 1, j) !== name) lines.push({x: i + 1, x2: i + 1, y: j, y2: j + 1});
    if (at(i, j + 1) && at(i, j + 1) !== name) lines.push({x: i, x2: i + 1, y: j + 1, y2: j + 1});
    if (seen.has(`${i} ${j}`)) continue;
    const region = [], next = [[i, j]];
    while (next.length) {
      const [a, b] = next.pop();
      if (seen.has(`${a} ${b}`) || at(a, b) !== name) continue;
      seen.add(`${a} ${b}`);
      region.push([a, b]);
      next.push([a + 1, b], [a - 1, b], [a, b + 1], [a, b - 1]);
    }
    const middle = [0, 1].map((k) => region.reduce((sum, place) => sum + place[k], 0) / region.length);
    const away = ([a, b]) => (a - middle[0]) ** 2 + (b - middle[1]) ** 2;
    const [a, b] = region.reduce((best, place) => (away(place) < away(best) ? place : best));
    names.push({x: a + 0.5, y: b + 0.5, text: shown(name).slice(0, 12)});
  }
  return {lines, names};
}

function flaggedCells(x, y) {
  if (!has('phase_outlier')) return new Set();
  const flags = valuesOf('phase_outlier');
  return new Set(lastRows('phase_outlier').filter((row) => flags[row]).map((row) => `${x.place(row)} ${y.place(row)}`));
}

const mapState = {x: null, y: null, value: null, chosen: null};

function setUpMap(onCells) {
  const {choices, x, y} = content.axes;
  if (x === null || y === null || !numberOfRows) {
    byId('map-choices').hidden = byId('map-cells').hidden = true;
    byId('map-note').textContent = numberOfRows ? 'No map: fewer than two settings vary in this zoo.' : 'No map: this zoo has no rows yet.';
    return;
  }
  const ofValues = content.table.columns.filter((c) => ['outcome', 'measured'].includes(c.role) && c.type !== 'large' &&
    (c.type !== 'text' || /^phase(_of_run)?$/.test(c.name)) && c.values?.length !== 0).map((c) => c.name);
  const metrics = [...ofValues.filter((n) => !n.endsWith('_se')), COUNT, SHARE];
  const first = ['test_accuracy', 'test_acc', 'test_loss', 'train_loss'].find((n) => metrics.includes(n)) ?? metrics[0];
  const choose = (id, names, chosen, names_) => byId(id).replaceChildren(...names.map((n) => el('option', {value: n, selected: n === chosen}, names_(n))));
  choose('map-value', metrics, first, labelled);
  choose('map-x', choices, x, spoken);
  choose('map-y', choices, y, spoken);
  Object.assign(mapState, {x, y, value: first});
  for (const [id, key] of [['map-value', 'value'], ['map-x', 'x'], ['map-y', 'y']]) {
    byId(id).addEventListener('change', (event) => { mapState[key] = event.target.value; mapState.chosen = null; drawMap(onCells); });
  }
  byId('map-choices').addEventListener('submit', (event) => event.preventDefault());
}

async function drawMap(onCells) {
  if (!mapState.value) return;
  const {x: xName, y: yName, value: name} = mapState;
  const [x, y] = [axisOf(xName), axisOf(yName)];
  const cells = cellsOf(x, y, name);
  const named = columns.get(name)?.type === 'text';
  const phases = has('phase') ? cellsOf(x, y, 'phase') : new Map();
  const over = phaseLines(named ? cells : phases);
  const flagged = flaggedCells(x, y);
  const choose = (i, j) => {
    const same = mapState.chosen?.i === i && mapState.chosen?.j === j;
    mapState.chosen = same ? null : {i, j};
    onCells(same ? [] : [...x.conditions(i), ...(xName === yName ? [] : y.conditions(j))], [xName, yName]);
    drawMap(onCells);
  };
  const list = [...cells.values()].map((cell) => ({
    x: cell.i, x2: cell.i + 1, y: cell.j, y2: cell.j + 1, value: cell.value ?? null, ...cell, all: undefined,
    colour: named ? colourOf(cell.name, cells) : null,
    says: `${spoken(xName)} ${x.labels[cell.i]}, ${spoken(yName)} ${y.labels[cell.j]}: ${cellText(cell, name)}` +
      `${phases.get(`${cell.i} ${cell.j}`) && name !== 'phase' ? `, phase ${shown(phases.get(`${cell.i} ${cell.j}`).name)}` : ''}` +
      `${flagged.has(`${cell.i} ${cell.j}`) ? ', outlier' : ''} (${counted(cell.runs, 'run')})`,
  }));
  const marks = [...flagged].map((key) => key.split(' ').map(Number)).map(([i, j]) => ({x: i + 0.88, y: j + 0.8, text: '×'}));
  const numbers = list.map((cell) => cell.value).filter((v) => v !== null && Number.isFinite(v));
  const kind = named ? 'named' : scaleOf(numbers);
  const most = Math.max(...numbers.map(Math.abs), 1e-30);
  const parameters = {
    x_labels: x.labels, y_labels: y.labels, x_ticks: x.labels.map((_, i) => i + 0.5), y_ticks: y.labels.map((_, i) => i + 0.5),
    columns: x.labels.length, lines: y.labels.length, low: -most, high: most,
  };
  const chosen = mapState.chosen && [{x: mapState.chosen.i, x2: mapState.chosen.i + 1, y: mapState.chosen.j, y2: mapState.chosen.j + 1}];
  const data = {cells: list, borders: over.lines, names: [...over.names, ...marks], chosen: chosen ?? []};
  const titles = {'@x': spoken(xName), '@y': spoken(yName), '@value': labelled(name) + (kind === 'log' ? ', log scale' : '')};
  const spec = filled(`map_${kind}`, titles, parameters, data);
  spec.layer = spec.layer.filter((layer) => data[layer.data.name].length); // one without data makes the library warn
  spec.height = Math.round(Math.min(440, Math.max(250, y.labels.length * 58)));
  byId('map-note').textContent = mapNote(x, y, name, over.lines.length, flagged.size);
  mapTable(x, y, cells, name, choose);
  const view = await drawChart(byId('map-chart'), spec);
  view.addEventListener('click', (event, item) => { if (item?.datum && 'runs' in item.datum) choose(item.datum.i, item.datum.j); });
}

const cellText = (cell, name) => `${name === COUNT ? 'runs' : spoken(name)} ${'name' in cell ? shown(cell.name) : shownNumber(cell.value)}`;

function colourOf(name, cells) {
  const others = [...new Set([...cells.values()].map((cell) => cell.name))].filter((n) => !PHASES.includes(n)).sort(compare);
  const place = PHASES.includes(name) ? PHASES.indexOf(name) : PHASES.length + others.indexOf(name);
  return COLOURS[place % COLOURS.length];
}

// Logarithmic where positive values span more than two decades, diverging where both signs occur.
function scaleOf(values) {
  const low = Math.min(...values), high = Math.max(...values);
  if (low < 0 && high > 0) return 'signed';
  return low > 0 && high / low > 100 ? 'log' : 'linear';
}

function mapNote(x, y, name, lines, outliers) {
  const parts = [name === COUNT || name === SHARE ? 'Each cell counts its runs.' : 'Each cell is over its runs, each at its last row with a value.'];
  if (lines) parts.push('Lines divide phases.');
  if (outliers) parts.push('× marks outliers.');
  if (x.binned || y.binned) parts.push('Values are put into bins.');
  if (x.more || y.more) parts.push(`An axis shows its first ${MOST} values.`);
  return `${parts.join(' ')} Click a cell to see its rows in the table.`;
}

function mapTable(x, y, cells, name, choose) {
  const head = el('tr', {}, el('th', {scope: 'col'}, `${spoken(y.name)} \\ ${spoken(x.name)}`), ...x.labels.map((label) => el('th', {scope: 'col'}, label)));
  const lines = y.labels.map((label, j) => el('tr', {}, el('th', {scope: 'row'}, label), ...x.labels.map((_, i) => {
    const cell = cells.get(`${i} ${j}`);
    if (!cell) return el('td', {}, '–');
    const pressed = String(mapState.chosen?.i === i && mapState.chosen?.j === j);
    const text = 'name' in cell ? shown(cell.name) : shownNumber(cell.value);
    return el('td', {}, el('button', {type: 'button', 'aria-pressed': pressed, 'data-cell': `${i} ${j}`, onclick: () => choose(i, j)}, text));
  })));
  const had = document.activeElement?.dataset?.cell; // the table is made anew: the focus stays on its cell
  byId('map-cells').querySelector('.scroll').replaceChildren(
    el('table', {}, el('caption', {}, labelled(name)), el('thead', {}, head), el('tbody', {}, ...lines.reverse())));
  if (had) byId('map-cells').querySelector(`[data-cell="${had}"]`)?.focus();
}
