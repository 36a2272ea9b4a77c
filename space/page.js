// Evidence buttons play exactly their span of the recording.
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
