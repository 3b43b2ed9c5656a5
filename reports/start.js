"use strict";
// Unpacks what the page holds: its data, and the script that works on them.
async function unpack(id) {
  const packed = Uint8Array.from(atob(document.getElementById(id).textContent.trim()), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}
// Colours first, so that nobody sees the others; stored settings may be forbidden, as in a frame.
try {
  const theme = localStorage.getItem("harness-theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch (error) { /* As the system has them. */ }
unpack("script").then((source) => {
  const script = document.createElement("script");
  script.textContent = source;
  document.body.append(script);
}, () => { document.getElementById("plain").hidden = false; });
