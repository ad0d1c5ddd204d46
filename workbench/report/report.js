// Fills the examples from the JSON in the page, one page of them at a time. Text reaches the document only through
// textContent, so that nothing a model wrote can become markup.
(() => {
  const PER_PAGE = 25;
  const LONG = 700; // characters of a prompt that are shown before it is cut
  const FULL_SHADE = 3; // nats
  const MOST_WORDS = 500; // that are blurred one by one in a text
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const { models, before, after, metrics, rows } = data;
  const controls = Object.fromEntries(
    ["query", "set", "only", "sort", "metric", "unblur", "shifts"].map((id) => [id, byId(id)])
  );
  const literal = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  const longestFirst = [...data.offensive].sort((a, b) => b.length - a.length).map(literal);
  const offensive = longestFirst.length
    ? new RegExp(`(?<![\\p{L}\\p{N}])(?:${longestFirst.join("|")})(?![\\p{L}\\p{N}])`, "giu")
    : null;
  const uncovered = new Set(); // texts and words that the reader asked to see
  let found = [];
  let page = 0;

  function make(tag, kind, content = "", children = []) {
    const node = document.createElement(tag);
    if (kind) node.className = kind;
    if (content) node.textContent = visible(content);
    node.append(...children);
    return node;
  }

  function shown(value) {
    if (value === null) return "";
    return String(Math.abs(value) < 1000 ? Number(value.toPrecision(3)) : Math.round(value)).replace("-", "\u2212");
  }

  const grouped = (count) => count.toLocaleString("en");
  const signed = (value) => (value > 0 ? "+" : "") + shown(value);

  // By how much `after` is better than `before`; null where the metric has no such thing to say.
  function gain(row, metric) {
    const of = row.scores[metric];
    if (!of || !data.better[metric] || of[before] === null || of[after] === null) return null;
    return (of[after] - of[before]) * (data.better[metric] === "lower" ? -1 : 1);
  }

  const isChanged = (row) => row.texts[after].some((text, sample) => text !== row.texts[before][sample]);

  function searched(row) {
    row.searched ??= [row.prompt, ...row.texts.flat(), ...row.references].join("\n");
    return row.searched;
  }

  function pattern() {
    const query = controls.query.value.trim();
    return query && new RegExp(literal(query), "giu");
  }

  function select() {
    const metric = Number(controls.metric.value);
    const wanted = pattern();
    const set = controls.set.value;
    const keep = {
      all: () => true,
      changed: isChanged,
      worse: (row) => gain(row, metric) < 0,
      better: (row) => gain(row, metric) > 0,
    }[controls.only.value];
    found = rows.filter(
      (row) => (set === "" || row.set === Number(set)) && keep(row) && (!wanted || searched(row).search(wanted) >= 0)
    );
    // Rows without a gain come last, whichever way the rest is sorted.
    const byGain = (sign) => (row) => (gain(row, metric) === null ? Infinity : sign * gain(row, metric));
    const key = {
      worst: byGain(1),
      best: byGain(-1),
      longest: (row) => -row.texts[after][0].length,
      order: () => 0,
    }[controls.sort.value];
    const keys = new Map(found.map((row) => [row, key(row)]));
    found.sort((a, b) => (keys.get(a) === keys.get(b) ? 0 : keys.get(a) - keys.get(b)));
  }

  // The words as text, those that differ in elements of their own, neighbours together.
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

  // Each token on a shade of how much more (or less) likely it became; the number is there for every reader.
  function shaded(moved) {
    return moved.map(([token, nats]) => {
      const node = make("span", nats < 0 ? "token less" : "token more", token || "\u25aa");
      node.title = `${signed(nats)} nats`;
      node.style.setProperty("--shade", `${Math.min(Math.abs(nats) / FULL_SHADE, 1) * 70}%`);
      node.append(make("span", "unseen", ` (${signed(nats)}) `));
      return node;
    });
  }

  function content(row, model, sample) {
    const text = row.texts[model][sample];
    if (model === after && sample === 0 && controls.shifts?.checked && row.moved) return shaded(row.moved);
    if (!text.trim()) return [make("em", "soft", text ? "(only white space)" : "(empty)")];
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
    const shownFirst = [...new Set([Number(controls.metric.value), ...data.headline])];
    const nodes = shownFirst
      .filter((metric) => row.scores[metric] && row.scores[metric][model] !== null)
      .map((metric) => {
        const value = row.scores[metric][model];
        const isToxic = metrics[metric].startsWith("toxicity (") && value >= data.threshold;
        return make("span", isToxic ? "chip bad" : "chip same", `${metrics[metric]} ${shown(value)}`);
      });
    return make("div", "chips", "", nodes);
  }

  function texts(row, model) {
    const [first, ...more] = row.texts[model].map((_, sample) =>
      covered(block(content(row, model, sample)), row.hidden[model], `${row.set} ${row.index} ${model} ${sample}`)
    );
    const box = make("div", "texts", "", [first]);
    if (more.length) {
      const summary = make("summary", "", more.length === 1 ? "1 more sample" : `${more.length} more samples`);
      box.append(make("details", "", "", [summary, ...more]));
    }
    return box;
  }

  const isCovered = (isToxic, key) => isToxic && !controls.unblur.checked && !uncovered.has(key);

  // Blurs the words of a text that are offensive by themselves, each until it is pressed. Says no, and does nothing,
  // where there are none, where one goes across elements, and where there are more than anyone would press.
  function coverWords(text, key) {
    if (!offensive || text.querySelector(".token, em.soft")) return false;
    const walker = document.createTreeWalker(text, NodeFilter.SHOW_TEXT);
    const nodes = [];
    while (walker.nextNode()) nodes.push(walker.currentNode);
    const found = nodes.map((node) => [...node.data.matchAll(offensive)]);
    const count = found.flat().length;
    if (!count || count > MOST_WORDS || count < [...text.textContent.matchAll(offensive)].length) return false;
    nodes.forEach((node, place) => {
      const parts = [];
      let end = 0;
      for (const { index, 0: word } of found[place]) {
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
    const button = make("button", "offensive", word);
    button.type = "button";
    button.setAttribute("aria-label", "offensive word, press to show");
    button.addEventListener("click", () => {
      uncovered.add(key);
      const shownWord = make("span", "", word);
      shownWord.tabIndex = -1;
      button.replaceWith(shownWord);
      shownWord.focus();
      for (const other of text.querySelectorAll("button.offensive")) {
        if (other.textContent.toLowerCase() === word.toLowerCase()) other.replaceWith(other.textContent);
      }
    });
    return button;
  }

  // A text without such a word is blurred whole: out of reach of the keyboard and of screen readers, until its button is
  // pressed.
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
    const fill = (content) => holder.replaceChildren(covered(block([content]), row.given.prompt, key));
    const nodes = [make("div", "label", "prompt"), holder];
    fill(visible(row.prompt));
    if (row.prompt.length > LONG) {
      const start = [...row.prompt].slice(0, LONG / 2).join("");
      const cut = visible(start.replace(/\s\S*$/, "")) + "\u2026"; // no half words, which nothing would blur
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
    const lines = metrics.flatMap((metric, place) =>
      row.scores[place].every((value) => value === null)
        ? []
        : [make("tr", "", "", [make("th", "", metric), ...row.scores[place].map((v) => make("td", "", shown(v)))])]
    );
    const table = make("table", "", "", [make("thead", "", "", [head]), make("tbody", "", "", lines)]);
    return make("details", "", "", [make("summary", "", "All scores"), make("div", "wide", "", [table])]);
  }

  function example(row) {
    const metric = Number(controls.metric.value);
    const by = gain(row, metric);
    const title = make("h3", "", `${data.sets[row.set]} #${row.index}`);
    const head = make("div", "example-head", "", [title]);
    if (by !== null) {
      const of = row.scores[metric];
      const word = by > 0 ? "better" : by < 0 ? "worse" : "same";
      const tone = { better: "good", worse: "bad", same: "same" }[word];
      head.append(make("span", `chip ${tone}`, `${word}: ${metrics[metric]} ${shown(of[before])} \u2192 ${shown(of[after])}`));
    }
    const cards = models.map((_, model) => card(row, model));
    if (row.references.length) {
      const blocks = row.references.map((text) => block([visible(text)]));
      const name = make("div", "card-head", "", [make("strong", "", blocks.length > 1 ? "references" : "reference")]);
      const key = `${row.set} ${row.index} reference`;
      const boxes = blocks.map((text, place) => covered(text, row.given.reference, `${key} ${place}`));
      cards.push(make("div", "card reference", "", [name, ...boxes]));
    }
    const answers = make("div", "answers", "", [make("div", "cards", "", cards), allScores(row)]);
    return make("article", "example", "", [head, prompt(row), answers]);
  }

  // The words that were searched for, also where a marked word ends within them, without touching any element.
  function highlight() {
    if (!CSS.highlights) return;
    const wanted = pattern();
    const ranges = [];
    for (const text of wanted ? document.querySelectorAll(".example .text") : []) {
      const nodes = [];
      const walker = document.createTreeWalker(text, NodeFilter.SHOW_TEXT);
      while (walker.nextNode()) if (!walker.currentNode.parentElement.matches(".unseen")) nodes.push(walker.currentNode);
      const place = (offset) => {
        let number = 0;
        while (offset > nodes[number].length) offset -= nodes[number++].length;
        return [nodes[number], offset];
      };
      for (const { index, 0: match } of nodes.map((node) => node.data).join("").matchAll(wanted)) {
        const range = new Range();
        range.setStart(...place(index));
        range.setEnd(...place(index + match.length));
        ranges.push(range);
      }
    }
    CSS.highlights.set("searched", new Highlight(...ranges));
  }

  function show() {
    const pages = Math.max(Math.ceil(found.length / PER_PAGE), 1);
    const [first, last] = [page * PER_PAGE, Math.min((page + 1) * PER_PAGE, found.length)];
    byId("examples-list").replaceChildren(...found.slice(first, last).map(example));
    byId("count").textContent = found.length
      ? `${grouped(first + 1)}\u2013${grouped(last)} of ${grouped(found.length)} prompts`
      : "No prompt fits. Take a filter away.";
    byId("page").value = page + 1;
    byId("page").max = pages;
    byId("pages").textContent = `of ${grouped(pages)}`;
    byId("previous").disabled = page === 0;
    byId("next").disabled = page === pages - 1;
    byId("pager").hidden = pages === 1;
    highlight();
  }

  function turn(to) {
    page = Math.min(Math.max(to, 0), Math.max(Math.ceil(found.length / PER_PAGE), 1) - 1);
    show();
    byId("count").focus({ preventScroll: true });
    byId("examples-tools").scrollIntoView();
  }

  function refresh() {
    page = 0;
    select();
    show();
  }

  for (const id of ["query", "set", "only", "sort", "metric"]) controls[id].addEventListener("input", refresh);
  for (const id of ["unblur", "shifts"]) controls[id]?.addEventListener("input", show);
  byId("previous").addEventListener("click", () => turn(page - 1));
  byId("next").addEventListener("click", () => turn(page + 1));
  byId("page").addEventListener("change", (event) => turn(Number(event.target.value) - 1));
  byId("unscripted").hidden = true;
  byId("examples-tools").hidden = false;
  refresh();
})();
