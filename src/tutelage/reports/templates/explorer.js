"use strict";
// The explorer: the texts stand on the page already; this makes their tokens selectable and shows, beside the text, what
// teacher and student expected at the selected one.  All text goes through textContent.
(() => {
  const data = JSON.parse(document.getElementById("explored").textContent);
  const root = document.querySelector(".explorer");
  const beside = root.querySelector(".beside");
  const said = root.querySelector(".said");
  const levels = ["no", "little", "some", "much", "very much"];
  let student = 0;
  let chosen = null;

  const make = (tag, name, text) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const percent = (parts) => (parts > 0 ? (parts / 100).toFixed(parts < 10 ? 2 : 1) : "<0.01") + "%";
  const levelOf = (kl) => data.limits.filter((limit) => kl >= limit).length;

  const texts = [...root.querySelectorAll(".tokens")].map((element, number) => {
    const spans = [...element.children];
    return { element, content: data.texts[number], spans: data.texts[number].at.map((at) => spans[at]), all: spans };
  });

  const paint = () => {
    for (const { content, spans } of texts) {
      spans.forEach((span, n) => {
        const kl = content.kl[n][student];
        const level = levelOf(kl);
        span.className = "k" + level;
        span.title = "KL " + kl.toFixed(2) + " nats";
        span.setAttribute("aria-label", data.tokens[content.true[n]] + ", " + levels[level] + " disagreement");
      });
    }
  };

  const column = (name, listed, isTeacher) => {
    const box = make("div", isTeacher ? "expected teacher" : "expected");
    const [trueParts, rank, ...flat] = listed;
    box.append(make("h4", "", name));
    const list = make("ol", "");
    const row = (token, parts, isTrue, note) => {
      const item = make("li", isTrue ? "true" : "");
      item.append(make("span", "token", data.tokens[token]), make("span", "share", note || percent(parts)));
      const bar = make("span", "bar");
      bar.style.setProperty("--p", parts / 100 + "%");
      item.append(bar);
      if (isTrue) item.append(make("span", "unseen", "the true next token"));
      list.append(item);
    };
    for (let n = 0; n < flat.length; n += 2) row(flat[n], flat[n + 1], flat[n] === chosen.token, "");
    if (rank > flat.length / 2) row(chosen.token, trueParts, true, percent(trueParts) + ", rank " + rank);
    box.append(list);
    return box;
  };

  const show = () => {
    const { text, n } = chosen;
    const place = text.content.top[n];
    const at = text.content.at[n];
    const kl = text.content.kl[n][student];
    const head = make("p", "context", text.all.slice(Math.max(0, at - 10), at).map((s) => s.textContent.trimEnd() === "↵" ? "↵ " : s.textContent.replaceAll("\n", "")).join(""));
    head.append(make("mark", "k" + levelOf(kl), data.tokens[chosen.token]));
    const both = make("div", "both");
    both.append(column(data.models[0], place[0], true), column(data.models[1 + student], place[1 + student], false));
    const close = make("button", "close", "×");
    close.setAttribute("aria-label", "close");
    close.addEventListener("click", () => select(null));
    beside.replaceChildren(close, head, make("p", "disagree", "KL " + kl.toFixed(2) + " nats: " + levels[levelOf(kl)] + " disagreement"), both);
    said.textContent = data.tokens[chosen.token] + ": KL " + kl.toFixed(2) + " nats; teacher " +
      data.tokens[place[0][2]] + " " + percent(place[0][3]) + ", " + data.models[1 + student] + " " +
      data.tokens[place[1 + student][2]] + " " + percent(place[1 + student][3]);
  };

  const select = (next, focus) => {
    if (chosen) chosen.text.spans[chosen.n].setAttribute("aria-selected", "false");
    const last = chosen;
    chosen = next;
    beside.hidden = !next;
    if (!next) return last && last.text.spans[last.n].focus();
    const span = next.text.spans[next.n];
    next.text.spans.forEach((each) => each.setAttribute("tabindex", each === span ? "0" : "-1"));
    next.token = next.text.content.true[next.n];
    span.setAttribute("aria-selected", "true");
    if (focus) span.focus();
    show();
  };

  const keys = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  for (const text of texts) {
    text.element.setAttribute("role", "listbox");
    text.element.setAttribute("aria-label", "tokens of the text");
    text.spans.forEach((span, n) => {
      span.setAttribute("role", "option");
      span.setAttribute("aria-selected", "false");
      span.setAttribute("tabindex", n ? "-1" : "0");
    });
    const numberOf = (target) => text.spans.indexOf(target.closest("span"));
    text.element.addEventListener("click", (event) => {
      const n = numberOf(event.target);
      if (n >= 0) select({ text, n }, true);
    });
    text.element.addEventListener("keydown", (event) => {
      const n = numberOf(event.target);
      if (n < 0) return;
      let next = keys[event.key] ? n + keys[event.key] : n;
      if (event.key === "Home") next = 0;
      else if (event.key === "End") next = text.spans.length - 1;
      else if (event.key === "Escape") return select(null);
      else if (!keys[event.key] && event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      select({ text, n: Math.min(Math.max(next, 0), text.spans.length - 1) }, true);
    });
  }

  const picker = root.querySelector(".picker");
  if (picker) {
    picker.hidden = false;
    picker.querySelector("select").addEventListener("change", (event) => {
      student = event.target.selectedIndex;
      paint();
      if (chosen) show();
    });
  }
  paint();
  root.classList.add("live");
  const wide = window.matchMedia("(min-width: 60rem)").matches;
  const first = texts[0];
  if (wide && first && first.spans.length) {
    const kl = first.content.kl.map((each) => each[0]);
    select({ text: first, n: kl.indexOf(Math.max(...kl)) }, false);
  }
})();
