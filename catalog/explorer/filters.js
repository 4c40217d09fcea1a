// Conditions on rows: what they mean here, and how they are written in Python (polars) and SQL. Both must agree.

const OPERATORS = {
  eq: ['=', '==', '='], ne: ['≠', '!=', '<>'], lt: ['<', '<', '<'], le: ['≤', '<=', '<='], gt: ['>', '>', '>'],
  ge: ['≥', '>=', '>='], contains: ['contains'], starts: ['starts with'], yes: ['true'], no: ['false'],
  null: ['empty'], known: ['not empty'],
};
const OFFERED = {
  number: ['ge', 'le', 'gt', 'lt', 'eq', 'ne', 'null', 'known'],
  text: ['eq', 'ne', 'contains', 'starts', 'null', 'known'],
  truth: ['yes', 'no', 'null', 'known'],
  large: ['eq', 'ne', 'null', 'known'],
};
const WITHOUT_VALUE = ['yes', 'no', 'null', 'known'];
// Names that polars' SQL takes for something else unless they stand in quotes (tried with polars 2.1).
const WORDS = new Set(('all and any array as asc between by case cast current_date current_time current_timestamp ' +
  'current_user distinct else end except exists explain false fetch filter first from full group having in inner ' +
  'intersect interval into is join last lateral left like limit map not null offset on or order outer over partition ' +
  'qualify right rlike select session_user set show some struct then top trim true union unnest user using values ' +
  'when where window with').split(' '));

// A condition of text from a form; throws with what to do when the text is no value of the column.
function readCondition(name, operator, text) {
  const column = columns.get(name);
  if (WITHOUT_VALUE.includes(operator)) return {name, operator};
  if (column.type === 'number') {
    const value = Number(text.trim().replace('−', '-'));
    if (!text.trim() || !Number.isFinite(value)) throw new Error(`${spoken(name)} holds numbers: write one, as in 0.96`);
    return {name, operator, value};
  }
  if (column.type === 'large' && !/^-?\d+$/.test(text.trim())) throw new Error(`${spoken(name)} holds whole numbers`);
  return {name, operator, value: column.type === 'large' ? text.trim() : text};
}

// Row number -> whether the condition holds; nothing but `empty` holds for an empty cell.
function testOf({name, operator, value}) {
  const column = columns.get(name);
  const values = column.values;
  const against = column.single ? Math.fround(value) : value; // polars compares in the type of the column
  const tests = {
    eq: (v) => compare(v, against) === 0, ne: (v) => compare(v, against) !== 0,
    lt: (v) => compare(v, against) < 0, le: (v) => compare(v, against) <= 0,
    gt: (v) => compare(v, against) > 0, ge: (v) => compare(v, against) >= 0,
    contains: (v) => v.includes(value), starts: (v) => v.startsWith(value),
    yes: (v) => v === true, no: (v) => v === false, known: () => true,
  };
  if (operator === 'null') return (row) => values[row] === null;
  const test = tests[operator];
  return (row) => values[row] !== null && test(values[row]);
}

function inWords({name, operator, value}) {
  return `${spoken(name)} ${OPERATORS[operator][0]}${value === undefined ? '' : ` ${shownValue(value)}`}`;
}

function pythonText(text) {
  const quoted = text.replace(/["\\]/g, '\\$&');
  return `"${quoted.replace(UNSEEN, (c) => {
    const code = c.codePointAt(0).toString(16);
    return code.length > 4 ? `\\U${code.padStart(8, '0')}` : `\\u${code.padStart(4, '0')}`;
  })}"`;
}

function pythonOf({name, operator, value}) {
  const column = `pl.col(${pythonText(name)})`;
  const literal = columns.get(name).type === 'text' ? pythonText(value ?? '') : String(value);
  switch (operator) {
    case 'null': return `${column}.is_null()`;
    case 'known': return `${column}.is_not_null()`;
    case 'yes': return column;
    case 'no': return `~${column}`;
    case 'contains': return `${column}.str.contains(${literal}, literal=True)`;
    case 'starts': return `${column}.str.starts_with(${literal})`;
    default: return `(${column} ${OPERATORS[operator][1]} ${literal})`;
  }
}

const sqlText = (text) => `'${text.replaceAll("'", "''")}'`;
function sqlName(name) {
  return /^[A-Za-z_][A-Za-z0-9_]*$/.test(name) && !WORDS.has(name.toLowerCase()) ? name : `"${name.replaceAll('"', '""')}"`;
}

function sqlOf({name, operator, value}) {
  const column = sqlName(name);
  const literal = columns.get(name).type === 'text' ? sqlText(value ?? '') : String(value);
  switch (operator) {
    case 'null': return `${column} IS NULL`;
    case 'known': return `${column} IS NOT NULL`;
    case 'yes': return `${column} = true`;
    case 'no': return `${column} = false`;
    case 'contains': return `strpos(${column}, ${sqlText(value.replace(/[.*+?()|[\]{}^$\\#&~-]/g, '\\$&'))}) > 0`; // a regular expression in polars
    case 'starts': return `starts_with(${column}, ${literal})`;
    default: return `${column} ${OPERATORS[operator][2]} ${literal}`;
  }
}

// One word of a shell command; a text of a zoo may look like one.
function shellWord(text) {
  if (/^[\w./:=,@%+][\w./:=,@%+-]*$/.test(text)) return text;
  return /[$`\\!"]/.test(text) ? `'${text.replaceAll("'", "'\\''")}'` : `"${text}"`;
}

function pythonCode(conditions, sort) {
  const lines = ['import catalog', 'import polars as pl', '', `rows = catalog.open(${pythonText(content.place)}).scan(None)`];
  if (conditions.length) lines.push(`rows = rows.filter(${conditions.map(pythonOf).join(' & ')})`);
  if (sort) {
    const order = `descending=${sort.descending ? 'True' : 'False'}, nulls_last=True, maintain_order=True`;
    lines.push(`rows = rows.sort(${pythonText(sort.name)}, ${order})`);
  }
  return [...lines, 'rows = rows.collect()'].join('\n');
}

function commandCode(conditions, sort, visible) {
  const where = conditions.map(sqlOf).join(' and ');
  const names = [where, sort?.name ?? '', ...visible, content.place].join('');
  if (names.search(UNSEEN) >= 0) return '# There are characters here that a terminal would not show: use the Python above.';
  const words = ['weightscape query', shellWord(content.place)];
  if (where) words.push(shellWord(where));
  words.push('--status all');
  const plain = visible.filter((name) => !name.includes(','));
  if (plain.length) words.push('--columns', shellWord(plain.join(',')));
  if (sort && !sort.name.includes(',')) words.push('--sort', shellWord(sort.name), ...(sort.descending ? ['--descending'] : []));
  return words.join(' ');
}
