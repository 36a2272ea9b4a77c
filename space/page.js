// Evidence buttons and lines of the transcript play exactly their span of the recording.
function sxlPlay(start, end) {
  const player = document.getElementById("sxl-player");
  if (!player) return;
  player.currentTime = start;
  player.dataset.end = end;
  player.play();
}
function sxlStop(player) {
  if (player.dataset.end && player.currentTime >= Number(player.dataset.end)) {
    player.pause();
    delete player.dataset.end;
  }
}
// What is searched for in the transcript: other lines are hidden, its places are marked. The text itself is never
// touched (CSS highlights are ranges), so the search holds while lines are added.
let sxlSought = "";
function sxlSearch(text) {
  sxlSought = (text || "").trim().toLowerCase();
  const ranges = [];
  for (const line of document.querySelectorAll("#sxl-transcript li")) {
    const words = line.querySelector("span").firstChild;
    const said = words ? words.data.toLowerCase() : "";
    line.hidden = !said.includes(sxlSought);
    for (let at = said.indexOf(sxlSought); sxlSought && at >= 0; at = said.indexOf(sxlSought, at + sxlSought.length)) {
      const range = new Range();
      range.setStart(words, at);
      range.setEnd(words, at + sxlSought.length);
      ranges.push(range);
    }
  }
  if (window.Highlight) CSS.highlights.set("sxl-sought", new Highlight(...ranges));
}
document.addEventListener("input", (event) => {
  if (event.target.closest("#sxl-search")) sxlSearch(event.target.value);
});
function sxlWatch(element) {
  new MutationObserver(() => sxlSought && sxlSearch(sxlSought)).observe(element, { childList: true, subtree: true });
}
// A file that was made when its button was pressed.
function sxlDownload(file) {
  const link = document.createElement("a");
  link.href = file.url;
  link.download = file.orig_name || "";
  link.click();
}
