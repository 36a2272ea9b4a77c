// What the page does without its server: the player and the transcript follow each other, the transcript is searched,
// the shelf's buttons ask before they delete. Cards, chapters and evidence name seconds; the player is gradio's own.
const sxlPlayer = () => document.querySelector("#sxl-player audio");
const sxlCards = () => [...document.querySelectorAll("#sxl-transcript .sxl-card")];

// Evidence and cards play exactly their span; a chapter and the time line play from there on.
function sxlPlay(start, end) {
  const player = sxlPlayer();
  if (!player) return;
  player.currentTime = start;
  if (end === undefined) delete player.dataset.end;
  else player.dataset.end = end;
  player.play();
}
function sxlSeekAt(event, track) {
  const box = track.getBoundingClientRect();
  sxlPlay(((event.clientX - box.left) / box.width) * Number(track.dataset.seconds));
}
function sxlOpen(start, isPlayable) {
  if (isPlayable) sxlPlay(start);
  sxlShow(start);
}
// The card of a moment, in the middle of the transcript; the page itself is not moved.
function sxlShow(seconds) {
  const cards = sxlCards();
  const card = cards.findLast((c) => Number(c.dataset.start) <= seconds + 0.01) || cards[0];
  if (!card || card.hidden) return;
  let box = card.parentElement;
  while (box && box.id !== "sxl-transcript" && box.scrollHeight <= box.clientHeight + 1) box = box.parentElement;
  if (!box) return;
  const from = card.getBoundingClientRect().top - box.getBoundingClientRect().top;
  const isStill = matchMedia("(prefers-reduced-motion: reduce)").matches;
  box.scrollBy({ top: from - (box.clientHeight - card.clientHeight) / 2, behavior: isStill ? "auto" : "smooth" });
}

// While it plays: the cursor moves, and the card of what is being said is marked and kept in sight.
function sxlFollow() {
  const player = sxlPlayer();
  if (!player) return;
  const now = player.currentTime;
  if (player.dataset.end && now >= Number(player.dataset.end)) {
    player.pause();
    delete player.dataset.end;
  }
  const track = document.querySelector("#sxl-timeline .sxl-track");
  if (track) {
    const cursor = track.querySelector(".sxl-cursor");
    cursor.hidden = false;
    cursor.style.left = `${(100 * now) / Number(track.dataset.seconds)}%`;
  }
  const marked = document.querySelector("#sxl-transcript .sxl-card[aria-current]");
  const card = sxlCards().findLast((c) => Number(c.dataset.start) <= now + 0.05 && now < Number(c.dataset.end) + 1.5);
  if (card !== marked) {
    marked?.removeAttribute("aria-current");
    card?.setAttribute("aria-current", "true");
    const follows = document.querySelector("#sxl-follow input");
    if (card && (!follows || follows.checked)) sxlShow(now);
  }
  for (const chapter of document.querySelectorAll(".sxl-chapters button")) {
    const next = chapter.parentElement.nextElementSibling?.firstElementChild;
    const isNow = Number(chapter.dataset.start) <= now && (!next || now < Number(next.dataset.start));
    chapter.toggleAttribute("aria-current", isNow);
  }
}
for (const kind of ["timeupdate", "seeked"])
  document.addEventListener(kind, (event) => event.target.closest?.("#sxl-player") && sxlFollow(), true);

// How much the last answer rests on each card: the time line says it for equal parts of what was heard.
let sxlHeat = "";
function sxlPaint() {
  const track = document.querySelector("#sxl-timeline .sxl-track");
  const said = track?.dataset.heat || "";
  const heat = said.split(" ").map(Number);
  const step = Number(track?.dataset.heard || 0) / heat.length;
  let hottest = null;
  for (const card of sxlCards()) {
    const first = Math.floor(Number(card.dataset.start) / step), last = Math.ceil(Number(card.dataset.end) / step);
    const warmth = said ? Math.max(0, ...heat.slice(first, last)) : 0;
    card.style.setProperty("--heat", warmth);
    card.classList.toggle("sxl-rests", warmth > 0.1);
    if (warmth > 0.1 && (!hottest || warmth > hottest.warmth)) hottest = { warmth, start: Number(card.dataset.start) };
  }
  if (said !== sxlHeat && hottest && (!sxlPlayer() || sxlPlayer().paused)) sxlShow(hottest.start);
  sxlHeat = said;
  if (sxlSought) sxlSearch(sxlSought);
}
function sxlWatch(element, changed) {
  new MutationObserver(changed).observe(element, { childList: true, subtree: true });
}

// What is searched for in the transcript: other cards are hidden, its places are marked. The text itself is never
// touched (CSS highlights are ranges), so the search holds while cards are added.
let sxlSought = "";
function sxlSearch(text) {
  sxlSought = (text || "").trim().toLowerCase();
  const ranges = [], cards = sxlCards();
  for (const card of cards) {
    const words = card.querySelector("span").firstChild;
    const said = words ? words.data.toLowerCase() : "";
    card.hidden = !said.includes(sxlSought);
    for (let at = said.indexOf(sxlSought); sxlSought && at >= 0; at = said.indexOf(sxlSought, at + sxlSought.length)) {
      const range = new Range();
      range.setStart(words, at);
      range.setEnd(words, at + sxlSought.length);
      ranges.push(range);
    }
  }
  for (const heading of document.querySelectorAll("#sxl-transcript .sxl-heading")) heading.hidden = !!sxlSought;
  const shown = cards.filter((card) => !card.hidden).length;
  const found = document.querySelector("#sxl-found");
  const said = shown ? `${shown} of ${cards.length} segments` : "No segment has these words.";
  if (found) found.textContent = sxlSought && cards.length ? said : "";
  if (window.Highlight) CSS.highlights.set("sxl-sought", new Highlight(...ranges));
}
document.addEventListener("input", (event) => {
  if (event.target.closest("#sxl-search")) sxlSearch(event.target.value);
});

// A file that was made when its button was pressed.
function sxlDownload(file) {
  const link = document.createElement("a");
  link.href = file.url;
  link.download = file.orig_name || "";
  link.click();
}
// The shelf's buttons: each tells its handler which memory is meant.
function sxlShelf(element, trigger) {
  element.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-do]");
    if (!button) return;
    const { do: what, id, name } = button.dataset;
    if (what === "open") trigger("select", { ids: [id] });
    else if (what === "join") {
      const ids = [...element.querySelectorAll("input:checked")].map((box) => box.value);
      if (ids.length > 1) trigger("select", { ids });
      else alert("Tick two or more memories first.");
    }
    else if (what === "download") trigger("download", { id });
    else if (what === "delete" && confirm(`Delete ${name}? It cannot be brought back.`)) trigger("delete", { id });
    else if (what === "edit") {
      const chosen = prompt("A name for this memory", name);
      if (chosen) trigger("edit", { id, name: chosen });
    }
  });
}
