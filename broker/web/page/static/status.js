// Keeps the page up to date: fetches it again and changes only what differs, so that the focus, the
// selection and open details stay.
(() => {
  const every = 1800; // milliseconds, from the end of one look to the next
  const away = document.getElementById("away");
  let looking = false;

  const keyOf = (node) => node.dataset?.key ?? node.nodeName;

  function morph(held, fresh) {
    if (held.nodeType !== fresh.nodeType || held.nodeName !== fresh.nodeName) {
      held.replaceWith(fresh);
      return;
    }
    if (held.nodeType === Node.TEXT_NODE) {
      if (held.data !== fresh.data) held.data = fresh.data;
      return;
    }
    if (held.nodeType !== Node.ELEMENT_NODE) return;
    for (const { name, value } of [...fresh.attributes]) {
      if (held.getAttribute(name) !== value) held.setAttribute(name, value);
    }
    for (const { name } of [...held.attributes]) {
      if (!fresh.hasAttribute(name) && name !== "open") held.removeAttribute(name);
    }
    morphChildren(held, [...fresh.childNodes]);
  }

  // Children are matched by key: an app that has moved up the page keeps what was opened in it.
  function morphChildren(held, fresh) {
    const spare = [...held.childNodes];
    const wanted = fresh.map((node) => {
      const at = spare.findIndex((mine) => keyOf(mine) === keyOf(node));
      if (at < 0) return node;
      const [mine] = spare.splice(at, 1);
      morph(mine, node);
      return mine;
    });
    spare.forEach((node) => node.remove());
    wanted.forEach((node, n) => {
      if (held.childNodes[n] !== node) held.insertBefore(node, held.childNodes[n] ?? null);
    });
  }

  const two = (number) => String(number).padStart(2, "0");

  // A time in the reader's zone, with UTC beside it; where the reader's zone is UTC, as it came.
  function local(iso) {
    const at = new Date(iso);
    if (Number.isNaN(at.getTime()) || at.getTimezoneOffset() === 0) return null;
    const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
    const utcDay = iso.slice(0, 10);
    const utc = `${utcDay === day ? "" : `${utcDay} `}${iso.slice(11, 16)} UTC`;
    return `${day} ${two(at.getHours())}:${two(at.getMinutes())} (${utc})`;
  }

  function localize(root) {
    for (const time of root.querySelectorAll("time[datetime]")) {
      time.textContent = local(time.getAttribute("datetime")) ?? time.textContent;
    }
    for (const hour of root.querySelectorAll("g[data-at]")) {
      const title = hour.querySelector("title");
      const [, ...counts] = title.textContent.split(" · ");
      const when = local(hour.dataset.at);
      if (when) title.textContent = [when, ...counts].join(" · ");
    }
  }

  async function update() {
    if (document.hidden || looking) return;
    looking = true;
    try {
      const signal = AbortSignal.timeout(10000);
      const answer = await fetch(location.href, { cache: "no-store", signal });
      if (!answer.ok) throw new Error(String(answer.status));
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      // Another release of the daemon: its page goes with its own script and style.
      const scriptOf = (page) => page.querySelector("script")?.getAttribute("src");
      const [script, ours] = [fresh, document].map(scriptOf);
      if (script && script !== ours) return location.reload();
      localize(fresh);
      morph(document.body, fresh.body);
      if (document.title !== fresh.title) document.title = fresh.title;
      away.hidden = true;
    } catch {
      away.hidden = false;
    } finally {
      looking = false;
    }
  }

  async function forever() {
    for (;;) {
      await new Promise((over) => setTimeout(over, every));
      await update();
    }
  }

  localize(document);
  document.addEventListener("visibilitychange", update);
  forever();
})();
