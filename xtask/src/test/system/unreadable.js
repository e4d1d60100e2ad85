// Text that has too little contrast with what is behind it, lines likewise, and what is too wide.
(() => {
  const channels = (color) => color.match(/[\d.]+/g).map(Number);
  const light = (color) => channels(color).slice(0, 3).map((c) => c / 255)
    .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const color = getComputedStyle(node).backgroundColor;
      if ((channels(color)[3] ?? 1) === 1) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const contrast = (color, node) => {
    const [low, high] = [light(color), light(behind(node))].sort((one, other) => one - other);
    return (high + 0.05) / (low + 0.05);
  };
  const found = [], checked = { texts: 0, lines: 0 };
  const check = (node, color, least, what) => {
    const has = contrast(color, node);
    if (has < least) found.push(`${what}: ${has.toFixed(2)}, ${color} on ${behind(node)}`);
  };
  for (const node of document.body.querySelectorAll("*")) {
    if (["SCRIPT", "NOSCRIPT", "title"].includes(node.tagName) || !node.getClientRects().length) continue;
    const style = getComputedStyle(node), before = getComputedStyle(node, "::before");
    if ([...node.childNodes].some((part) => part.nodeType === 3 && part.data.trim())) {
      checked.texts++;
      check(node, style.color, 4.5, node.textContent);
    }
    if (before.content !== "none") check(node, before.color, 4.5, before.content);
    if (node.tagName === "path" && style.stroke.startsWith("rgb") && !node.closest("#map")) {
      checked.lines++;
      check(node, style.stroke, 3, node.getAttribute("class"));
    }
    if (node.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5) {
      found.push(`${node.tagName} ${node.textContent.slice(0, 40)} is too wide`);
    }
  }
  if (document.documentElement.scrollWidth > innerWidth) found.push("the page is too wide");
  return { found, ...checked, light: light(behind(document.body)) };
})()
