// Verdicts of greedy speculative decoding, recomputed from recorded drafts, and a page around them.
// A block is [nodes, own]: nodes are [token, parent, letter], own is [token, letter] or null.
const SpecnbPlay = (() => {
  const HIGHEST = 0.95, ALPHA = 0.9, BETA1 = 0.5, BETA2 = 0.9, EPSILON = 0.01, FACTOR = 0.2;

  // The threshold of AdaEDL and MaxConfidence, which moves after every block.
  function rule(kind, threshold) {
    let acceptance = 0, now = threshold;
    const score = (place, depth) => kind === "AdaEDL"
      ? 1 - Math.sqrt(FACTOR * Math.max(place.entropy[depth], 0)) : place.sure[depth];
    return {
      stops: (place, depth) => kind !== "chain" && score(place, depth) < now,
      update: (drafted, accepted, most) => {
        if (kind === "chain" || drafted === 0) return;
        acceptance = BETA1 * acceptance + (1 - BETA1) * accepted / drafted;
        let moved = now;
        if (acceptance < ALPHA) moved += EPSILON; else if (accepted !== most) moved -= EPSILON;
        now = Math.min(BETA2 * now + (1 - BETA2) * moved, Math.max(HIGHEST, threshold));
      },
    };
  }

  // The tree of one block as [token, parent] in the order of the levels.
  function drafted(place, settings, room, stopping, ends) {
    const nodes = [];
    if (settings.method === "tree") {
      const most = Math.min(settings.depth, room);
      let frontier = place.tree.slice(0, settings.width).map((path) => ({ path, node: -1 }));
      for (let level = 0; level < most && frontier.length; level++) {
        const next = [];
        for (const { path, node } of frontier) {
          if (level >= path.length) continue;
          nodes.push([path[level], node]);
          if (!ends.includes(path[level])) next.push({ path, node: nodes.length - 1 });
        }
        frontier = next;
      }
      return { nodes, levels: most, most };
    }
    const most = Math.min(settings.length, room);
    for (let depth = 0; depth < most && depth < place.chain.length; depth++) {
      if (stopping.stops(place, depth)) break;
      nodes.push([place.chain[depth], depth - 1]);
      if (ends.includes(place.chain[depth])) break;
    }
    return { nodes, levels: nodes.length, most };
  }

  // All blocks of one greedy answer. The target's own token at place i is text[i].
  function greedy(recorded, item, settings) {
    const { text, places } = item, ends = recorded.ends, blocks = [];
    const stopping = rule(settings.method === "tree" ? "chain" : settings.method, settings.threshold);
    let at = 0;
    while (at < text.length) {
      const room = recorded.max_new_tokens - at - 1;
      const { nodes, levels, most } = drafted(places[at], settings, room, stopping, ends);
      const letters = nodes.map(() => "u");
      let parent = -1, accepted = 0, looked = false, ended = false;
      for (let open = true; open;) {
        open = looked = false;
        for (let node = 0; node < nodes.length; node++) {
          if (nodes[node][1] !== parent) continue;
          looked = true;
          if (nodes[node][0] === text[at + accepted]) {
            letters[node] = "a";
            accepted += 1;
            parent = node;
            ended = ends.includes(nodes[node][0]);
            open = !ended;
            break;
          }
          letters[node] = "r";
        }
      }
      let own = null;
      if (!ended) own = [text[at + accepted], looked ? "c" : nodes.length ? "b" : "p"];
      blocks.push([nodes.map(([token, above], i) => [token, above, letters[i]]), own]);
      stopping.update(levels, accepted, most);
      at += accepted + (own ? 1 : 0);
    }
    return blocks;
  }

  function figures(recorded, blocks) {
    let tokens = 0, wasted = 0;
    for (const [nodes, own] of blocks) {
      const kept = nodes.filter(([, , letter]) => letter === "a").length;
      tokens += kept + (own ? 1 : 0);
      wasted += nodes.length - kept;
    }
    return { tokens, calls: blocks.length, wasted, efficiency: tokens / blocks.length };
  }

  return { greedy, figures };
})();
if (typeof window !== "undefined") window.SpecnbPlay = SpecnbPlay;

(() => {
  const recorded = window.SPECNB_RECORDED, root = document.getElementById("play");
  if (!recorded || !root) return;
  root.hidden = false;
  const by = (name) => document.getElementById(`play-${name}`);
  const SIGNS = { a: "✓", r: "✗", u: "·", c: "↺", b: "+", p: "○" };
  const WORDS = {
    a: "accepted", r: "rejected", u: "never looked at", c: "correction", b: "bonus", p: "plain",
  };
  const shown = (token) => {
    const piece = recorded.pieces[token];
    return piece.replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length)).replace(/\n/g, "⏎") || "∅";
  };
  const put = (tag, text, more = {}) =>
    Object.assign(document.createElement(tag), { textContent: text, ...more });

  recorded.items.forEach((item, i) => {
    by("item").append(put("option", `${item.task}: ${item.prompt}`, { value: i }));
  });

  // What the sliders may say: all values when greedy, the recorded ones when drawn.
  const range = (least, most, step) =>
    Array.from({ length: Math.round((most - least) / step) + 1 }, (_, i) => +(least + i * step).toFixed(2));
  const VALUES = {
    greedy: { length: range(1, 16, 1), threshold: range(0, 0.95, 0.05), width: range(1, 4, 1), depth: range(1, 8, 1) },
    drawn: { length: recorded.lengths, threshold: recorded.thresholds, width: recorded.widths, depth: [4] },
  };
  const NEEDED = {
    chain: ["length"], AdaEDL: ["threshold", "length"], MaxConfidence: ["threshold", "length"],
    tree: ["width", "depth"],
  };
  const chosen = { length: 5, threshold: 0.4, width: 3, depth: 4 };

  function settings() {
    const mode = by("mode").value;
    for (const option of by("method").options) {
      option.disabled = mode === "drawn" && option.value === "MaxConfidence";
      if (option.disabled && option.selected) by("method").value = "chain";
    }
    const method = by("method").value;
    for (const name of Object.keys(chosen)) {
      const slider = by(name), values = VALUES[mode][name];
      let at = values.findIndex((value) => value >= chosen[name]);
      if (at < 0) at = values.length - 1;
      Object.assign(slider, { min: 0, max: values.length - 1, step: 1, value: at });
      let value = values[at];
      const fixed = mode === "drawn" && (name === "depth" || (name === "length" && method === "AdaEDL"));
      if (fixed && name === "length") value = 16;
      slider.disabled = fixed;
      slider.parentElement.hidden = !NEEDED[method].includes(name);
      slider.setAttribute("aria-valuetext", String(value));
      by(`${name}-is`).textContent = value;
    }
    const given = Object.fromEntries(Object.keys(chosen).map((name) => {
      const value = VALUES[mode][name][+by(name).value];
      return [name, value];
    }));
    return { mode, method, ...given };
  }

  function blocksOf(item, wanted) {
    if (wanted.mode === "greedy") return SpecnbPlay.greedy(recorded, item, wanted);
    const name = { chain: `chain ${wanted.length}`, AdaEDL: `AdaEDL ${wanted.threshold}`,
      tree: `tree ${wanted.width}` }[wanted.method];
    return item.runs[name];
  }

  // The blocks' tokens with the place of the text that each stands at, null behind a rejection.
  function draw(item, wanted, blocks) {
    const strip = by("strip");
    strip.replaceChildren();
    let at = 0;
    blocks.forEach(([nodes, own], number) => {
      const row = put("li", "");
      const kept = nodes.filter(([, , letter]) => letter === "a").length;
      const add = (into, token, letter, place) => {
        const one = put("button", `${SIGNS[letter]} ${shown(token)}`, { type: "button", className: `play-token play-${letter}` });
        one.setAttribute("aria-label", `${shown(token)}, ${WORDS[letter]}`);
        one.addEventListener("click", () => detail(item, wanted, token, letter, place));
        into.append(one);
      };
      const depth = [];
      nodes.forEach(([, parent], i) => { depth[i] = parent < 0 ? 0 : depth[parent] + 1; });
      // A tree is shown path by path, the kept one's tokens first.
      const below = (parent) => nodes.flatMap(([, above], i) => (above === parent ? [i] : []));
      const paths = [];
      const walk = (node, before) => {
        const children = below(node);
        if (!children.length) paths.push(before);
        children.forEach((child, i) => walk(child, i ? [child] : [...before, child]));
      };
      below(-1).forEach((child) => walk(child, [child]));
      paths.forEach((path) => {
        const line = put("span", "", { className: "play-path" });
        for (const node of path) {
          const parentKept = nodes[node][1] < 0 || nodes[nodes[node][1]][2] === "a";
          add(line, nodes[node][0], nodes[node][2], parentKept ? at + depth[node] : null);
        }
        row.append(line);
      });
      if (own) {
        const alone = paths.length === 1 ? row.firstChild : null;
        const line = alone || put("span", "", { className: "play-path" });
        add(line, own[0], own[1], at + kept);
        if (!alone) row.append(line);
      }
      row.setAttribute("aria-label", `block ${number + 1}`);
      strip.append(row);
      at += kept + (own ? 1 : 0);
    });
  }

  function detail(item, wanted, token, letter, place) {
    const box = by("detail");
    box.replaceChildren(put("p", `“${shown(token)}” was ${WORDS[letter]}.`));
    const known = wanted.mode === "greedy" && place !== null ? item.places[place] : null;
    if (!known) {
      const why = wanted.mode === "greedy"
        ? "It stands behind a rejected token, where the target's text never was."
        : "Distributions are recorded along the greedy text only.";
      box.append(put("p", why));
      return;
    }
    const table = put("table", "");
    const head = put("tr", "");
    for (const name of ["target", "p", "drafter", "q"]) head.append(put("th", name, { scope: "col" }));
    table.append(head);
    known.target.forEach(([id, p], i) => {
      const [other, q] = known.draft[i], row = put("tr", "");
      for (const cell of [shown(id), p.toFixed(3), shown(other), q.toFixed(3)]) row.append(put("td", cell));
      table.append(row);
    });
    box.append(put("p", "The likeliest tokens at this place, at temperature 1:"), table);
  }

  // Passes and waste of this prompt at every position of the slider that matters.
  function bars(item, wanted) {
    const name = { chain: "length", tree: "width" }[wanted.method] || "threshold";
    const values = VALUES[wanted.mode][name];
    const found = values.map((value) => SpecnbPlay.figures(recorded, blocksOf(item, { ...wanted, [name]: value })));
    const most = Math.max(...found.flatMap(({ calls, wasted }) => [calls, wasted]), 1);
    const table = put("table", ""), head = put("tr", "");
    table.append(put("caption", `This prompt at every ${{ length: "draft length", width: "number of paths", threshold: "threshold" }[name]}`));
    for (const title of [" ", "passes of the target", "wasted guesses"]) {
      head.append(title === " " ? put("td", "") : put("th", title, { scope: "col" }));
    }
    table.append(head);
    values.forEach((value, i) => {
      const row = put("tr", "", { className: value === wanted[name] ? "play-now" : "" });
      row.append(put("th", value, { scope: "row" }));
      for (const [kind, count] of [["calls", found[i].calls], ["wasted", found[i].wasted]]) {
        const cell = put("td", ""), bar = put("span", "", { className: `play-bar play-${kind}` });
        bar.style.width = `${(65 * count) / most}%`;
        cell.append(bar, put("span", ` ${count}`));
        row.append(cell);
      }
      table.append(row);
    });
    by("bars").replaceChildren(table);
  }

  function show() {
    const wanted = settings(), item = recorded.items[+by("item").value];
    const blocks = blocksOf(item, wanted);
    const { tokens, calls, wasted, efficiency } = SpecnbPlay.figures(recorded, blocks);
    by("picture").src = item.picture;
    by("figures").textContent = `${tokens} tokens in ${calls} passes of the target: block efficiency `
      + `${efficiency.toFixed(2)}, ${wasted} guesses wasted`;
    draw(item, wanted, blocks);
    bars(item, wanted);
    by("detail").textContent = "Choose a token: what both models thought of its place.";
  }
  for (const name of ["item", "mode", "method"]) by(name).addEventListener("change", show);
  for (const name of Object.keys(chosen)) {
    by(name).addEventListener("input", () => {
      chosen[name] = VALUES[by("mode").value][name][+by(name).value];
      show();
    });
  }
  show();
})();
