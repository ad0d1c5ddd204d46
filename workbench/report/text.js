"use strict";
// Prepares texts for display: invisible characters become visible, and differing words are marked.

// Invisible characters become their symbol or number, as in workbench/report/page.py.
const visible = (text) =>
  text
    .replace(/[\x00-\x08\x0b-\x1f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)))
    .replace(/\x7f/g, "\u2421")
    .replace(/[\x80-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]/gu, (c) =>
      `\u27e8U+${c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}\u27e9`
    );

const WORDS = new Intl.Segmenter(undefined, { granularity: "word" });

// Words, each with the space after it: a space alone is never a difference.
function split(text) {
  const parts = [];
  for (const { segment } of WORDS.segment(text)) {
    if (parts.length && !segment.trim()) parts[parts.length - 1] += segment;
    else parts.push(segment);
  }
  return parts;
}

// Which words of two lists are outside their longest common subsequence.
function differences(first, second) {
  const same = (i, j) => first[i].trim() === second[j].trim();
  let start = 0;
  let [n, m] = [first.length, second.length];
  while (start < n && start < m && same(start, start)) start++;
  while (n > start && m > start && same(n - 1, m - 1)) [n, m] = [n - 1, m - 1];
  const width = m - start + 1;
  const longest = new Uint32Array((n - start + 1) * width);
  const at = (i, j) => (i - start) * width + (j - start);
  for (let i = n - 1; i >= start; i--) {
    for (let j = m - 1; j >= start; j--) {
      longest[at(i, j)] = same(i, j)
        ? longest[at(i + 1, j + 1)] + 1
        : Math.max(longest[at(i + 1, j)], longest[at(i, j + 1)]);
    }
  }
  const removed = first.map((_, i) => i >= start && i < n);
  const added = second.map((_, j) => j >= start && j < m);
  for (let i = start, j = start; i < n && j < m; ) {
    if (same(i, j)) removed[i++] = added[j++] = false;
    else if (longest[at(i + 1, j)] >= longest[at(i, j + 1)]) i++;
    else j++;
  }
  return [removed, added];
}
