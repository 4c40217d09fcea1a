// Columns as columns.py writes them, how values are shown, and how elements are made. Text goes in as text, never as HTML.

const content = JSON.parse(document.getElementById('data').textContent);
const byId = (id) => document.getElementById(id);
const UNSEEN = /[\p{C}\p{Zl}\p{Zp}]|(?! )\p{Zs}/gu; // control, direction and zero-width characters, odd spaces

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

function numbersOf(base64, Kind) {
  return new Kind(bytesOf(base64).buffer); // little-endian, as every machine that runs a browser
}

// Values of a column, null where there are none.
function decodeColumn(column, rows) {
  if ('floats' in column) {
    const floats = numbersOf(column.floats, column.width === 4 ? Float32Array : Float64Array);
    const nulls = bytesOf(column.nulls);
    let next = 0;
    return Array.from({length: rows}, (_, i) => (nulls.length && (nulls[i >> 3] >> (i & 7)) & 1 ? null : floats[next++]));
  }
  if (column.width === 0) return new Array(rows).fill(column.values.length ? column.values[0] : null);
  const codes = numbersOf(column.codes, {1: Uint8Array, 2: Uint16Array, 4: Uint32Array}[column.width]);
  return Array.from(codes, (code) => (code ? column.values[code - 1] : null));
}

const columns = new Map();
for (const column of content.table.columns) {
  let values = null; // decoded when they are asked for: a zoo may have a hundred columns, a page shows ten
  columns.set(column.name, {...column, get values() { return (values ??= decodeColumn(column, content.table.rows)); }});
}
const has = (name) => columns.has(name);
const valuesOf = (name) => columns.get(name).values;
const numberOfRows = content.table.rows;

// Text with characters written out that cannot be seen or turn around what follows.
function shown(text) {
  return String(text).replace(UNSEEN, (c) => `[U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, '0')}]`);
}

function shownNumber(value) {
  if (Number.isNaN(value)) return 'NaN';
  if (!Number.isFinite(value)) return value > 0 ? '∞' : '−∞';
  if (Number.isInteger(value) && Math.abs(value) < 1e9) return String(value).replace('-', '−');
  const size = Math.abs(value);
  const text = size >= 1e6 || size < 1e-4 ? value.toExponential(3) : String(Number(value.toPrecision(5)));
  return text.replace(/\.?0+e/, 'e').replace('e+', 'e').replaceAll('-', '−');
}

function shownValue(value) {
  if (value === null || value === undefined) return '–';
  return typeof value === 'number' ? shownNumber(value) : shown(value);
}

const grouped = (count) => count.toLocaleString('en');
const counted = (count, one, many = `${one}s`) => `${grouped(count)} ${count === 1 ? one : many}`;
const spoken = (name) => shown(name).replaceAll('_', ' ');
function labelled(name) {
  const unit = columns.get(name)?.unit;
  return spoken(name) + (unit ? ` [${unit}]` : '');
}

// NaN equals NaN and is larger than all else, as in polars.
function compare(a, b) {
  if (typeof a === 'number' && typeof b === 'number' && (Number.isNaN(a) || Number.isNaN(b))) {
    return Number(Number.isNaN(a)) - Number(Number.isNaN(b));
  }
  return a < b ? -1 : a > b ? 1 : 0;
}

// An element: el('p', {class: 'muted'}, 'text', child). Listeners are functions: {onclick: f}.
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === 'function') node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, '');
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function pairs(list, two = false) {
  return el('dl', {class: two ? 'pairs two' : 'pairs'}, ...list.flatMap(([name, value]) => [el('dt', {}, name), el('dd', {}, value)]));
}

async function copyText(text, output) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = el('textarea', {'aria-hidden': 'true', class: 'offscreen'});
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand('copy');
    area.remove();
  }
  if (output) output.textContent = 'copied';
}
