// One model: settings, curves over epochs, layers, a histogram of its weights.

const CURVES = 8;

function runRows(row) {
  const runs = valuesOf('run'), variants = valuesOf('variant'), epochs = valuesOf('epoch');
  const found = [];
  for (let i = 0; i < numberOfRows; i++) if (runs[i] === runs[row] && variants[i] === variants[row]) found.push(i);
  return found.sort((a, b) => epochs[a] - epochs[b]);
}

async function showModel(row) {
  state.selected = row;
  const rows = runRows(row);
  const run = valuesOf('run')[row];
  const bad = rows.find((i) => valuesOf('status')[i] !== 'ok');
  const status = bad === undefined ? 'ok' : `${shown(valuesOf('status')[bad])} from epoch ${valuesOf('epoch')[bad]}: ${shown(valuesOf('reason')[bad] || 'no reason given')}`;
  const settings = content.table.columns.filter((c) => c.role === 'setting' && valuesOf(c.name)[row] !== null);
  const last = rows[rows.length - 1];
  const outcomes = content.table.columns.filter((c) => ['outcome', 'measured'].includes(c.role) && valuesOf(c.name)[last] !== null);
  const values = (list, at) => pairs(list.map((c) => [labelled(c.name), shownValue(valuesOf(c.name)[at])]), true);
  const code = `row = catalog.open(${pythonText(content.place)}).scan(None).filter(\n    pl.col("variant") == ${pythonText(valuesOf('variant')[row])}, ` +
    `pl.col("run") == ${pythonText(run)}, pl.col("epoch") == ${valuesOf('epoch')[row]}\n).collect()`;
  const panel = byId('model-panel');
  const curves = el('div', {class: 'charts'});
  const weights = el('div');
  panel.replaceChildren(
    el('h3', {}, 'Run ', el('code', {}, shown(run))),
    el('p', {}, `${shown(valuesOf('variant')[row])}. Status: ${status}. ${counted(rows.length, 'checkpoint')}.`),
    el('div', {class: 'code'}, el('button', {type: 'button', onclick: (event) => copyText(code, event.target)}, 'Copy Python'), el('pre', {tabindex: '0', 'aria-label': 'This row in Python'}, code)),
    el('h4', {}, 'Curves'), curves,
    el('h4', {}, 'Weights'), weights,
    el('details', {}, el('summary', {}, `Settings (${settings.length})`), values(settings, row)),
    el('details', {}, el('summary', {}, `Values at its last checkpoint, epoch ${valuesOf('epoch')[last]} (${outcomes.length})`), values(outcomes, last)),
  );
  try {
    history.replaceState(null, '', `#run=${encodeURIComponent(run)}`);
  } catch { /* some viewers forbid it */ }
  await Promise.all([drawCurves(curves, rows), drawWeights(weights, row)]);
}

// Metrics of training and testing that share a name share a chart: train_loss and test_loss.
function curveGroups(rows) {
  const groups = new Map();
  for (const column of content.table.columns) {
    if (column.type !== 'number' || !['outcome', 'measured'].includes(column.role) || column.name.endsWith('_se')) continue;
    const values = valuesOf(column.name);
    const known = rows.filter((row) => values[row] !== null && Number.isFinite(values[row]));
    if (known.length < 2) continue;
    const [, series, metric] = /^(?:(train|test|val|validation)_)?(.*)$/.exec(column.name);
    if (!groups.has(metric)) groups.set(metric, {title: labelled(column.name).replace(/^(train|test|val|validation) /, ''), points: []});
    for (const row of known) {
      const epoch = valuesOf('epoch')[row];
      const says = `${spoken(column.name)} ${shownNumber(values[row])} at epoch ${epoch}`;
      groups.get(metric).points.push({epoch, value: values[row], series: series ?? 'value', says});
    }
  }
  return [...groups.values()];
}

async function drawCurves(node, rows) {
  const groups = curveGroups(rows);
  if (!groups.length) {
    node.append(el('p', {class: 'muted'}, rows.length < 2 ? 'One checkpoint makes no curve.' : 'No metric has values at several checkpoints.'));
    return;
  }
  const drawn = groups.slice(0, CURVES).map(({title, points}) => {
    const chart = el('div', {class: 'chart', role: 'img', 'aria-label': `${title} over epochs: ${points.map((p) => p.says).slice(0, 40).join('; ')}`});
    node.append(chart);
    const spec = filled('curve', {'@title': title}, {}, {points});
    if (new Set(points.map((p) => p.series)).size < 2) for (const layer of spec.layer) layer.encoding.color.legend = null;
    return () => drawChart(chart, spec);
  });
  if (groups.length > CURVES) node.after(el('p', {class: 'muted'}, `The first ${CURVES} of ${groups.length} metrics that change over epochs.`));
  for (const draw of drawn) await draw();
}

async function drawWeights(node, row) {
  const rows = new Set(runRows(row));
  const variant = content.weights.find((w) => w.variant === valuesOf('variant')[row]);
  const at = variant ? variant.rows.findIndex((r) => rows.has(r)) : -1;
  if (at < 0) {
    node.append(el('p', {class: 'muted'}, `The weights of this model are not in the page: it has those of ${counted(content.weights.reduce((n, w) => n + w.rows.length, 0), 'model')}, drawn at random (seed ${content.seed}).`));
    return;
  }
  const from = valuesOf('epoch')[variant.rows[at]];
  const count = variant.tensors.length;
  const statistics = numbersOf(variant.statistics, Float32Array).slice(at * count * 4, (at + 1) * count * 4);
  const counts = numbersOf(variant.counts, Uint16Array).slice(at * variant.bins, (at + 1) * variant.bins);
  const [low, high] = numbersOf(variant.ends, Float32Array).slice(at * 2, at * 2 + 2);
  const edge = (i) => low + ((high - low) * i) / variant.bins;
  const bins = Array.from(counts, (n, i) => ({low: edge(i), high: edge(i + 1), count: n * variant.scale[at],
    says: `${grouped(n * variant.scale[at])} from ${shownNumber(edge(i))} to ${shownNumber(edge(i + 1))}`}));
  const head = ['tensor', 'shape', 'elements', 'mean', 'std', 'norm', 'max |w|'];
  const numeric = (text) => el('td', {class: 'number'}, text);
  const lines = variant.tensors.map(([name, shape, role], t) => el('tr', {},
    el('th', {scope: 'row'}, shown(name) + (role === 'buffer' ? ' (buffer)' : '')), el('td', {}, shape.length ? shape.join(' × ') : 'scalar'),
    numeric(grouped(shape.reduce((a, b) => a * b, 1))),
    ...[0, 1, 2, 3].map((k) => numeric(Number.isNaN(statistics[t * 4 + k]) ? '–' : shownNumber(Number(statistics[t * 4 + k].toPrecision(4)))))));
  const chart = el('div', {class: 'chart', role: 'img', 'aria-label': `Histogram of the weights, from ${shownNumber(low)} to ${shownNumber(high)}`});
  node.append(
    el('p', {class: 'muted'}, `At epoch ${from}, the last checkpoint with weights.`),
    el('div', {class: 'scroll'}, el('table', {class: 'layers'}, el('caption', {}, 'Layers'), el('thead', {}, el('tr', {}, ...head.map((h, i) => el('th', {scope: 'col', class: i > 1 ? 'number' : null}, h)))), el('tbody', {}, ...lines))),
    chart,
  );
  await drawChart(chart, filled('histogram', {}, {}, {bins}));
}
