// Contrast by WCAG 2 of every text that can be seen with what lies behind it, smallest first: [ratio, text].
() => {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, below) => [0, 1, 2].map((k) => top[k] * top[3] + below[k] * (1 - top[3])).concat([1]);
  const light = (colour) => {
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = colour.slice(0, 3).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (one, other) => {
    const [a, b] = [light(one), light(other)].sort((p, q) => q - p);
    return (a + 0.05) / (b + 0.05);
  };
  const paper = rgba(getComputedStyle(document.body).backgroundColor);
  const behind = (node) => {
    const layers = [];
    for (let at = node; at; at = at.parentElement) layers.push(rgba(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((below, layer) => over(layer, below), paper);
  };
  const texts = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
    if (!text || !node.checkVisibility() || node.closest("script, option, title, .skip")) continue;
    const style = getComputedStyle(node), back = behind(node);
    const front = over(rgba(node.closest("svg") ? style.fill : style.color), back);
    texts.push([ratio(front, back), text.slice(0, 40)]);
  }
  const probe = document.body.appendChild(document.createElement("i"));
  const marks = ["method", "floor", "oracle", "s0", "s1", "s2", "s3", "s4", "s5", "strong-line"].map((name) => {
    probe.style.color = "var(--" + name + ")";
    return [ratio(rgba(getComputedStyle(probe).color), paper), name];
  });
  probe.remove();
  const order = (a, b) => a[0] - b[0];
  return { texts: texts.sort(order), marks: marks.sort(order) };
};
