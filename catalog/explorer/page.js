// Puts the parts together: head, health, card, theme, which model the address names.

function bytesShown(count) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
  let at = 0;
  while (count >= 1024 && at < units.length - 1) { count /= 1024; at++; }
  return `${at && count < 100 ? count.toFixed(1) : Math.round(count)} ${units[at]}`;
}

function drawHead() {
  const {card, health} = content;
  byId('title').textContent = shown(content.title);
  byId('subtitle').textContent = [content.title === card.name ? null : `zoo ${shown(card.name)}`, shown(card.licence) || 'no licence stated', `digest ${card.digest.slice(0, 12)}`].filter(Boolean).join(' · ');
  const tiles = [
    ['models', grouped(card.runs)], ['checkpoints', grouped(card.rows)], ['ok', grouped(health.runs.ok)],
    ['diverged', grouped(health.runs.diverged)], ['failed', grouped(health.runs.failed)],
    [card.num_variants === 1 ? 'variant' : 'variants', grouped(card.num_variants)], ['of weights', bytesShown(card.bytes)],
  ];
  byId('numbers').replaceChildren(...tiles.map(([name, value]) => el('div', {}, el('dt', {}, name), el('dd', {}, value))));
}

function simpleTable(caption, head, lines) {
  return el('div', {class: 'scroll'}, el('table', {}, el('caption', {}, caption),
    el('thead', {}, el('tr', {}, ...head.map((h) => el('th', {scope: 'col'}, h)))),
    el('tbody', {}, ...lines.map((cells) => el('tr', {}, ...cells.map((cell) => el('td', {class: typeof cell === 'number' ? 'number' : null}, typeof cell === 'number' ? grouped(cell) : cell)))))));
}

function drawHealth() {
  const {health, verification} = content;
  const kinds = ['ok', 'diverged', 'failed'];
  const node = byId('health');
  node.append(simpleTable('Runs and rows by status', ['status', 'runs', 'rows'], kinds.map((k) => [k, health.runs[k], health.rows[k]])));
  if (health.reasons.length) {
    const more = health.more_reasons ? `, the most frequent of ${health.reasons.length + health.more_reasons}` : '';
    node.append(simpleTable(`Reasons${more}`, ['status', 'reason', 'rows'], health.reasons.map(([status, reason, rows]) => [status, shown(reason), rows])));
  }
  node.append(el('h3', {}, 'Flagged cells'), flaggedList());
  node.append(el('h3', {}, 'Verification'));
  if (!verification) {
    node.append(el('p', {class: 'muted'}, 'Not asked for when this page was made; `weightscape verify` checks every byte.'));
    return;
  }
  const {problems} = verification;
  const checked = [verification.files && counted(verification.files, 'file'), verification.bytes && bytesShown(verification.bytes)].filter(Boolean).join(', ');
  node.append(el('p', {class: problems.length ? 'error' : 'good'}, problems.length ? `${counted(problems.length + verification.more, 'problem')} in ${checked}.` : `Every byte is what was committed: ${checked}.`));
  if (verification.digest) node.append(el('p', {}, 'Tree digest ', el('code', {}, shown(verification.digest))));
  if (problems.length) node.append(simpleTable('Problems', ['kind', 'file', 'message'], problems.map((p) => [shown(p.kind), shown(p.file), shown(p.message)])));
}

// Cells of the first map that have runs which are not ok, or outliers; a click shows their rows.
function flaggedList() {
  const {x: xName, y: yName} = content.axes;
  if (xName === null || yName === null || !numberOfRows) return el('p', {class: 'muted'}, 'There are no cells: fewer than two settings vary.');
  const [x, y] = [axisOf(xName), axisOf(yName)];
  const outliers = flaggedCells(x, y);
  const lines = [];
  for (const [key, cell] of cellsOf(x, y, SHARE)) {
    if (!cell.value && !outliers.has(key)) continue;
    const bad = Math.round(cell.value * cell.runs);
    const why = [bad ? `${bad} of ${counted(cell.runs, 'run')} not ok` : null, outliers.has(key) ? 'outlier of its phase map' : null].filter(Boolean).join(', ');
    const go = () => { setCell([...x.conditions(cell.i), ...y.conditions(cell.j)], [xName, yName]); byId('table').scrollIntoView(); };
    lines.push([-bad, el('li', {}, el('button', {type: 'button', onclick: go}, `${spoken(xName)} ${x.labels[cell.i]}, ${spoken(yName)} ${y.labels[cell.j]}`), ` ${why}`)]);
  }
  lines.sort((a, b) => a[0] - b[0]);
  if (!lines.length) return el('p', {class: 'muted'}, 'None: no run diverged or failed, and no cell is an outlier.');
  const more = lines.length > 40 ? el('li', {class: 'muted'}, `and ${lines.length - 40} more`) : null;
  return el('ul', {class: 'flagged'}, ...lines.slice(0, 40).map(([, line]) => line), more);
}

function drawCard() {
  const {card} = content;
  const node = byId('card');
  node.append(pairs([
    ['name', shown(card.name)], ['licence', shown(card.licence) || 'none stated'],
    ['citation', el('span', {class: 'lines'}, card.citation ? card.citation.split('\n').map(shown).join('\n') : 'none stated')],
    ['digest', el('code', {}, card.digest)], ['stored as', `${card.dtype}, ${card.tier}, ${bytesShown(card.bytes)} of weights`],
    ['committed', `${grouped(card.committed)} of ${counted(card.shards, 'shard')}`],
  ]));
  const more = card.num_variants > card.variants.length ? `, the first ${card.variants.length} of ${grouped(card.num_variants)}` : '';
  node.append(simpleTable(`Variants${more}`, ['variant', 'family', 'weights', 'models', 'checkpoints', 'tensors'],
    card.variants.map((v) => [shown(v.name), shown(v.family), v.weights, v.models, v.checkpoints, v.tensors])));
  const lines = (list) => pairs(list.map(([key, value]) => [shown(key), shown(value) || '–']), true);
  node.append(el('h3', {}, 'Spec'), card.spec.length ? lines(card.spec) : el('p', {class: 'muted'}, 'None: this zoo was imported or put together by hand.'));
  if (card.info.length) node.append(el('h3', {}, 'Provenance'), lines(card.info));
  if (card.metrics.length) {
    node.append(el('details', {}, el('summary', {}, `Measured metrics (${card.metrics.length})`),
      simpleTable('Metrics', ['metric', 'rows', 'settings'], card.metrics.map((m) => [shown(m.name), m.rows, shown(m.settings)]))));
  }
}

function setUpTheme() {
  const root = document.documentElement;
  const dark = () => (root.dataset.theme ? root.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches);
  const tell = () => {
    byId('theme').setAttribute('aria-pressed', String(dark()));
    drawMap(setCell);
    if (state.selected !== null) showModel(state.selected);
  };
  byId('theme').setAttribute('aria-pressed', String(dark()));
  byId('theme').addEventListener('click', () => { root.dataset.theme = dark() ? 'light' : 'dark'; tell(); });
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', tell);
}

async function chooseModel(row) {
  if (row === undefined) return;
  const drawn = showModel(row);
  byId('model').focus({preventScroll: true});
  byId('model').scrollIntoView({block: 'start'});
  await drawn;
}

async function openNamed() {
  const found = /^#run=(.+)$/.exec(location.hash);
  if (!found) return;
  let run = '';
  try {
    run = decodeURIComponent(found[1]);
  } catch { return; }
  const row = valuesOf('run').indexOf(run);
  if (row >= 0) await chooseModel(row);
}

drawHead();
setUpTable(chooseModel);
setUpMap(setCell);
drawHealth();
drawCard();
setUpTheme();
drawMap(setCell).then(openNamed).then(() => { document.documentElement.dataset.ready = 'yes'; });
