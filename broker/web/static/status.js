// Keeps the page up to date: fetches it again and changes what differs, so that focus, selection and open details stay.
(() => {
  const every = 2000;
  const away = document.getElementById("away");

  function morph(held, fresh) {
    if (held.nodeType !== fresh.nodeType || held.nodeName !== fresh.nodeName) return held.replaceWith(fresh);
    if (held.nodeType === Node.TEXT_NODE) {
      if (held.data !== fresh.data) held.data = fresh.data;
      return;
    }
    if (held.nodeType !== Node.ELEMENT_NODE) return;
    for (const { name, value } of [...fresh.attributes]) if (held.getAttribute(name) !== value) held.setAttribute(name, value);
    for (const { name } of [...held.attributes]) if (!fresh.hasAttribute(name) && name !== "open") held.removeAttribute(name);
    const mine = [...held.childNodes];
    const theirs = [...fresh.childNodes];
    if (mine.length !== theirs.length) return held.replaceChildren(...theirs);
    mine.forEach((node, n) => morph(node, theirs[n]));
  }

  async function update() {
    if (document.hidden) return;
    try {
      const answer = await fetch(location.href, { cache: "no-store", signal: AbortSignal.timeout(10000) });
      if (!answer.ok) throw new Error(String(answer.status));
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      const theirs = fresh.querySelectorAll("[data-live]");
      document.querySelectorAll("[data-live]").forEach((held, n) => morph(held, theirs[n]));
      if (document.title !== fresh.title) document.title = fresh.title;
      away.hidden = true;
    } catch {
      away.hidden = false;
    }
  }

  async function forever() {
    for (;;) {
      await new Promise((over) => setTimeout(over, every));
      await update();
    }
  }

  document.addEventListener("visibilitychange", update);
  forever();
})();
