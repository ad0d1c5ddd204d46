// Fills the examples from the JSON in the page (examples.py), one page of them at a time. Text reaches the document only
// through textContent, so that nothing a model wrote can become markup.
(() => {
  const PER_PAGE = 25;
  const LONG = 700; // characters; a longer prompt is folded
  const FULL_SHADE = 3; // nats
  const MAX_WORDS = 500; // a text with more toxic words is blurred as a whole
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const { models, before, after, metrics, judges, choices, rows } = data;
  const controls = Object.fromEntries(
    ["query", "set", "filter", "completions", "order", "metric", "unblur", "shade"].map((id) => [id, byId(id)])
  );
  const literal = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  const longestFirst = [...data.toxicWords].sort((a, b) => b.length - a.length).map(literal);
  const toxicWord = longestFirst.length
    ? new RegExp(`(?<![\\p{L}\\p{N}])(?:${longestFirst.join("|")})(?![\\p{L}\\p{N}])`, "giu")
    : null;
  const uncovered = new Set(); // texts and words that the reader asked to see
  let selected = [];
  let page = 0;

  function make(tag, kind, content = "", children = []) {
    const node = document.createElement(tag);
    if (kind) node.className = kind;
    if (content) node.textContent = visible(content);
    node.append(...children);
    return node;
  }

  function format(value) {
    if (value === null) return "";
    return String(Math.abs(value) < 1000 ? Number(value.toPrecision(3)) : Math.round(value)).replace("-", "\u2212");
  }

  const withCommas = (count) => count.toLocaleString("en");
  const signed = (value) => (value > 0 ? "+" : "") + format(value);

  // By how much `after` is better than `before`; null without a direction or a score.
  function gain(row, metric) {
    const [scores, direction] = [row.scores[metric], metrics[metric]?.direction];
    if (!direction || scores[before] === null || scores[after] === null) return null;
    return (scores[after] - scores[before]) * (direction === "lower" ? -1 : 1);
  }

  const isChanged = (row) => row.texts[after].some((text, sample) => text !== row.texts[before][sample]);

  // What the completions were chosen by, if they are: flips of a judge, or disagreements of two.
  const choice = () => choices[controls.completions?.value];

  const isFlip = (chosen) => "before" in chosen;

  function isChosen(row, model, sample) {
    const chosen = choice();
    const is = (judge, title, kind) => row.classes[judge][title][sample] === kind;
    if (!chosen) return false;
    if (!isFlip(chosen)) return is(chosen.toxic, model, "1") && is(chosen.clean, model, "0");
    const isCompared = model === before || model === after;
    return isCompared && is(chosen.judge, before, chosen.before) && is(chosen.judge, after, chosen.after);
  }

  // The samples of a model that were chosen.
  const chosenSamples = (row, model) =>
    choice() ? row.texts[model].flatMap((_, sample) => (isChosen(row, model, sample) ? [sample] : [])) : [];

  // The number of completions that were chosen; one that flipped is one, before and after together.
  function countChosen(row) {
    const counted = isFlip(choice()) ? [after] : models.map((_, model) => model);
    return counted.reduce((count, model) => count + chosenSamples(row, model).length, 0);
  }

  function searchText(row) {
    row.searchText ??= [row.prompt, ...row.texts.flat(), ...row.references].join("\n");
    return row.searchText;
  }

  function searchPattern() {
    const query = controls.query.value.trim();
    return query && new RegExp(literal(query), "giu");
  }

  // The filters stand in the address, so that a selection can be kept and sent; what is uncovered does not.
  const ADDRESSED = ["query", "set", "filter", "completions", "order", "metric"].filter((id) => controls[id]);
  const initial = Object.fromEntries(ADDRESSED.map((id) => [id, controls[id].value]));
  const labels = (entries) => entries.map(({ label }) => label);
  const NAMES = { set: data.sets, completions: labels(choices), metric: labels(metrics) }; // by the number in the control
  const inWords = (id) => NAMES[id]?.[controls[id].value] ?? controls[id].value;

  // The value of a control from its words; that at the start where it has no such value.
  function fromWords(id, words) {
    if (words === null) return initial[id];
    if (id === "query") return words;
    const value = id in NAMES ? String(NAMES[id].indexOf(words)) : words;
    return [...controls[id].options].some((option) => option.value === value) ? value : initial[id];
  }

  function writeAddress() {
    const changed = ADDRESSED.filter((id) => controls[id].value !== initial[id]);
    const parameters = new URLSearchParams(changed.map((id) => [id, inWords(id)]));
    if (page) parameters.set("page", page + 1);
    const isOurs = location.hash.includes("=");
    if (parameters.size || isOurs) history.replaceState(null, "", parameters.size ? `#${parameters}` : "#examples");
  }

  // Sets the controls from an address such as #set=test&filter=worse; returns whether it names a control.
  function readAddress() {
    const parameters = new URLSearchParams(location.hash.slice(1));
    if (![...ADDRESSED, "page"].some((id) => parameters.has(id))) return false;
    for (const id of ADDRESSED) controls[id].value = fromWords(id, parameters.get(id));
    select();
    turn(parameters.get("page") ?? 1);
    return true;
  }

  // The selected rows as JSON Lines, in the words of completions.jsonl.
  function download() {
    const byModel = (values) => Object.fromEntries(models.map((name, model) => [name, values[model]]));
    const lines = selected.map(({ set, index, prompt, references, texts, scores }) => {
      const named = scores.map((values, metric) => [metrics[metric].label, byModel(values)]);
      const row = { set: data.sets[set], index, prompt, references, completions: byModel(texts) };
      return JSON.stringify({ ...row, scores: Object.fromEntries(named) });
    });
    const link = make("a");
    link.href = URL.createObjectURL(new Blob(lines.map((line) => `${line}\n`), { type: "application/jsonl" }));
    link.download = "examples.jsonl";
    link.click();
    URL.revokeObjectURL(link.href);
  }

  function select() {
    const metric = Number(controls.metric.value);
    const pattern = searchPattern();
    const set = controls.set.value;
    const passes = {
      all: () => true,
      changed: isChanged,
      worse: (row) => gain(row, metric) < 0,
      better: (row) => gain(row, metric) > 0,
    }[controls.filter.value];
    selected = rows.filter(
      (row) =>
        (set === "" || row.set === Number(set)) &&
        passes(row) &&
        (!choice() || countChosen(row)) &&
        (!pattern || searchText(row).search(pattern) >= 0)
    );
    // Rows without a gain come last in either order.
    const byGain = (sign) => (row) => (gain(row, metric) === null ? Infinity : sign * gain(row, metric));
    const key = {
      worst: byGain(1),
      best: byGain(-1),
      longest: (row) => -row.texts[after][0].length,
      order: () => 0,
    }[controls.order.value];
    const keys = new Map(selected.map((row) => [row, key(row)]));
    selected.sort((a, b) => (keys.get(a) === keys.get(b) ? 0 : keys.get(a) - keys.get(b)));
  }

  // The words as text; each run of words that differ is one element.
  function marked(parts, differs, tag) {
    const nodes = [];
    for (let i = 0; i < parts.length; ) {
      let end = i;
      while (end < parts.length && differs[end] === differs[i]) end++;
      const run = parts.slice(i, end).join("");
      const bare = run.trimEnd();
      nodes.push(...(differs[i] ? [make(tag, "", bare), run.slice(bare.length)] : [visible(run)]));
      i = end;
    }
    return nodes;
  }

  // Each token, shaded by its log-ratio to the reference, with the number as a tooltip and for screen readers.
  function shaded(tokenLogRatios) {
    return tokenLogRatios.map(([token, nats]) => {
      const node = make("span", nats < 0 ? "token less" : "token more", token || "\u25aa");
      node.title = `${signed(nats)} nats`;
      node.style.setProperty("--shade", `${Math.min(Math.abs(nats) / FULL_SHADE, 1) * 70}%`);
      node.append(make("span", "unseen", ` (${signed(nats)}) `));
      return node;
    });
  }

  function content(row, model, sample) {
    const text = row.texts[model][sample];
    if (model === after && sample === 0 && controls.shade?.checked && row.tokenLogRatios) {
      return shaded(row.tokenLogRatios);
    }
    if (!text.trim()) return [make("em", "soft", text ? "(only whitespace)" : "(empty)")];
    if (model !== before && model !== after) return [visible(text)];
    const [first, second] = [split(row.texts[before][sample]), split(row.texts[after][sample])];
    const [removed, added] = differences(first, second);
    return model === before ? marked(first, removed, "del") : marked(second, added, "ins");
  }

  function block(nodes) {
    const node = make("div", "text", "", nodes);
    node.dir = "auto";
    return node;
  }

  function chips(row, model) {
    const onCards = metrics.flatMap(({ isOnCards }, metric) => (isOnCards ? [metric] : []));
    const nodes = [...new Set([Number(controls.metric.value), ...onCards])]
      .filter((metric) => row.scores[metric] && row.scores[metric][model] !== null)
      .map((metric) => {
        const value = row.scores[metric][model];
        const isToxic = metrics[metric].isToxicity && value >= data.threshold;
        return make("span", isToxic ? "chip bad" : "chip same", `${metrics[metric].label} ${format(value)}`);
      });
    return make("div", "chips", "", nodes);
  }

  function texts(row, model) {
    const boxes = row.texts[model].map((_, sample) =>
      covered(block(content(row, model, sample)), row.isToxic.models[model], `${row.set} ${row.index} ${model} ${sample}`)
    );
    const chosen = chosenSamples(row, model);
    const seen = chosen.length ? chosen : [0];
    const more = boxes.filter((_, sample) => !seen.includes(sample));
    const box = make(
      "div",
      "texts",
      "",
      seen.flatMap((sample) => (chosen.length ? [classNote(row, model, sample), boxes[sample]] : [boxes[sample]]))
    );
    if (more.length) {
      const summary = make("summary", "", more.length === 1 ? "1 more sample" : `${more.length} more samples`);
      box.append(make("details", "", "", [summary, ...more]));
    }
    return box;
  }

  // What every judge calls a sample.
  function classNote(row, model, sample) {
    const words = judges.map((judge, number) => `${judge}: ${row.classes[number][model][sample] === "1" ? "toxic" : "clean"}`);
    const number = row.texts[model].length > 1 ? `sample ${sample + 1}, ` : "";
    return make("div", "soft classes", number + words.join(", "));
  }

  const isCovered = (isToxic, key) => isToxic && !controls.unblur.checked && !uncovered.has(key);

  // Blurs each toxic word of a text until it is pressed. Returns false, and changes nothing, if it has no such word,
  // if one spans several elements, or if there are more than MAX_WORDS.
  function coverWords(text, key) {
    if (!toxicWord || text.querySelector(".token, em.soft")) return false;
    const walker = document.createTreeWalker(text, NodeFilter.SHOW_TEXT);
    const nodes = [];
    while (walker.nextNode()) nodes.push(walker.currentNode);
    const matches = nodes.map((node) => [...node.data.matchAll(toxicWord)]);
    const count = matches.flat().length;
    if (!count || count > MAX_WORDS || count < [...text.textContent.matchAll(toxicWord)].length) return false;
    nodes.forEach((node, number) => {
      const parts = [];
      let end = 0;
      for (const { index, 0: word } of matches[number]) {
        const wordKey = `${key} ${word.toLowerCase()}`;
        if (uncovered.has(wordKey)) continue;
        parts.push(node.data.slice(end, index), wordButton(text, word, wordKey));
        end = index + word.length;
      }
      if (parts.length) node.replaceWith(...parts, node.data.slice(end));
    });
    return true;
  }

  function wordButton(text, word, key) {
    const button = make("button", "toxic-word", word);
    button.type = "button";
    button.setAttribute("aria-label", "word judged toxic, press to show");
    button.addEventListener("click", () => {
      uncovered.add(key);
      const uncoveredWord = make("span", "", word);
      uncoveredWord.tabIndex = -1;
      button.replaceWith(uncoveredWord);
      uncoveredWord.focus();
      for (const other of text.querySelectorAll("button.toxic-word")) {
        if (other.textContent.toLowerCase() === word.toLowerCase()) other.replaceWith(other.textContent);
      }
    });
    return button;
  }

  // A toxic text without such a word is blurred as a whole, and inert for keyboard and screen readers, until its button
  // is pressed.
  function covered(box, isToxic, key) {
    if (!isCovered(isToxic, key) || coverWords(box, key)) return box;
    const button = make("button", "uncover", "Judged toxic \u2013 show");
    button.type = "button";
    box.inert = true;
    box.classList.add("blurred");
    button.addEventListener("click", () => {
      uncovered.add(key);
      box.inert = false;
      box.classList.remove("blurred");
      button.remove();
      box.tabIndex = -1;
      box.focus();
    });
    return make("div", "cover", "", [box, button]);
  }

  function card(row, model) {
    const role = model === before ? "before" : model === after ? "after" : "";
    const head = make("div", "card-head", "", [make("i", `key c${model % 6}`), make("strong", "", models[model])]);
    if (role) head.append(make("span", "soft", role));
    return make("div", `card ${role}`, "", [head, texts(row, model), chips(row, model)]);
  }

  function prompt(row) {
    const key = `${row.set} ${row.index} prompt`;
    const holder = make("div", "texts");
    const fill = (content) => holder.replaceChildren(covered(block([content]), row.isToxic.prompt, key));
    const nodes = [make("div", "label", "prompt"), holder];
    fill(visible(row.prompt));
    if (row.prompt.length > LONG) {
      const start = [...row.prompt].slice(0, LONG / 2).join("");
      const cut = visible(start.replace(/\s\S*$/, "")) + "\u2026"; // never within a word, which no pattern would match
      const button = make("button", "", "Show the whole prompt");
      let isCut = true;
      button.type = "button";
      button.addEventListener("click", () => {
        isCut = !isCut;
        fill(isCut ? cut : visible(row.prompt));
        button.textContent = isCut ? "Show the whole prompt" : "Show less";
      });
      fill(cut);
      nodes.push(button);
    }
    return make("div", "prompt", "", nodes);
  }

  function allScores(row) {
    const head = make("tr", "", "", [make("th"), ...models.map((name) => make("th", "", name))]);
    const lines = metrics.flatMap(({ label }, metric) =>
      row.scores[metric].every((value) => value === null)
        ? []
        : [make("tr", "", "", [make("th", "", label), ...row.scores[metric].map((value) => make("td", "", format(value)))])]
    );
    const table = make("table", "", "", [make("thead", "", "", [head]), make("tbody", "", "", lines)]);
    return make("details", "", "", [make("summary", "", "All scores"), make("div", "wide", "", [table])]);
  }

  function example(row) {
    const metric = Number(controls.metric.value);
    const improvement = gain(row, metric);
    const title = make("h3", "", `${data.sets[row.set]} #${row.index}`);
    const head = make("div", "example-head", "", [title]);
    if (improvement !== null) {
      const scores = row.scores[metric];
      const word = improvement > 0 ? "better" : improvement < 0 ? "worse" : "same";
      const tone = { better: "good", worse: "bad", same: "same" }[word];
      head.append(make("span", `chip ${tone}`, `${word}: ${metrics[metric].label} ${format(scores[before])} \u2192 ${format(scores[after])}`));
    }
    const cards = models.map((_, model) => card(row, model));
    if (row.references.length) {
      const blocks = row.references.map((text) => block([visible(text)]));
      const name = make("div", "card-head", "", [make("strong", "", blocks.length > 1 ? "references" : "reference")]);
      const key = `${row.set} ${row.index} reference`;
      const boxes = blocks.map((text, number) => covered(text, row.isToxic.references, `${key} ${number}`));
      cards.push(make("div", "card reference", "", [name, ...boxes]));
    }
    const completions = make("div", "completions", "", [make("div", "cards", "", cards), allScores(row)]);
    return make("article", "example", "", [head, prompt(row), completions]);
  }

  // Highlights every match of the search, also across elements, without changing the document.
  function highlight() {
    if (!CSS.highlights) return;
    const pattern = searchPattern();
    const ranges = [];
    for (const text of pattern ? document.querySelectorAll(".example .text") : []) {
      const nodes = [];
      const walker = document.createTreeWalker(text, NodeFilter.SHOW_TEXT);
      while (walker.nextNode()) if (!walker.currentNode.parentElement.matches(".unseen")) nodes.push(walker.currentNode);
      const position = (offset) => {
        let number = 0;
        while (offset > nodes[number].length) offset -= nodes[number++].length;
        return [nodes[number], offset];
      };
      for (const { index, 0: match } of nodes.map((node) => node.data).join("").matchAll(pattern)) {
        const range = new Range();
        range.setStart(...position(index));
        range.setEnd(...position(index + match.length));
        ranges.push(range);
      }
    }
    CSS.highlights.set("search", new Highlight(...ranges));
  }

  // How many completions of the selected prompts were chosen.
  function chosenCount() {
    if (!choice()) return "";
    const count = selected.reduce((total, row) => total + countChosen(row), 0);
    return `, ${withCommas(count)} completion${count === 1 ? "" : "s"}`;
  }

  function show() {
    const pages = Math.max(Math.ceil(selected.length / PER_PAGE), 1);
    const [first, last] = [page * PER_PAGE, Math.min((page + 1) * PER_PAGE, selected.length)];
    byId("examples-list").replaceChildren(...selected.slice(first, last).map(example));
    byId("count").textContent = selected.length
      ? `${withCommas(first + 1)}\u2013${withCommas(last)} of ${withCommas(selected.length)} prompts${chosenCount()}`
      : "No prompts match. Clear a filter.";
    byId("page").value = page + 1;
    byId("page").max = pages;
    byId("pages").textContent = `of ${withCommas(pages)}`;
    byId("previous").disabled = page === 0;
    byId("next").disabled = page === pages - 1;
    byId("pager").hidden = pages === 1;
    byId("download").disabled = !selected.length;
    highlight();
    writeAddress();
  }

  // Shows the page of that number, which a reader may have typed, or the nearest one.
  function turn(number) {
    const wanted = Math.trunc(Number(number)) || 1;
    page = Math.min(Math.max(wanted, 1), Math.max(Math.ceil(selected.length / PER_PAGE), 1)) - 1;
    show();
    byId("count").focus({ preventScroll: true });
    byId("examples-tools").scrollIntoView();
  }

  function refresh() {
    page = 0;
    select();
    show();
  }

  for (const id of ADDRESSED) controls[id].addEventListener("input", refresh);
  for (const id of ["unblur", "shade"]) controls[id]?.addEventListener("input", show);
  byId("previous").addEventListener("click", () => turn(page));
  byId("next").addEventListener("click", () => turn(page + 2));
  byId("page").addEventListener("change", (event) => turn(event.target.value));
  byId("download").addEventListener("click", download);
  addEventListener("hashchange", () => {
    if (readAddress() || location.hash) return;
    for (const id of ADDRESSED) controls[id].value = initial[id]; // back to the page as it was opened
    refresh();
  });
  byId("unscripted").hidden = true;
  byId("examples-tools").hidden = false;
  if (!readAddress()) refresh();
})();
