// What the browser does by itself: views, colours, dialogs, copying. Everything else is an event to the server.
"use strict";
const windlass = (() => {
  const root = document.documentElement;
  const views = { "/": "overview", "/search": "search", "/graph": "graph", "/chat": "chat" };
  const opened = new Set();

  const savedTheme = () => { try { return localStorage.getItem("windlass-theme"); } catch { return null; } };
  if (savedTheme()) root.dataset.theme = savedTheme();
  const systemDark = matchMedia("(prefers-color-scheme: dark)");
  const theme = () => root.dataset.theme || (systemDark.matches ? "dark" : "light");
  const switchTheme = () => {
    root.dataset.theme = theme() === "dark" ? "light" : "dark";
    try { localStorage.setItem("windlass-theme", root.dataset.theme); } catch { /* private window: not kept */ }
  };

  const show = (path) => {
    root.dataset.view = views[path] || "overview";
    for (const link of document.querySelectorAll("a[data-view]")) {
      if (link.dataset.view === root.dataset.view) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
  };
  const go = (path, address = path) => {
    if (address !== location.pathname + location.search) history.pushState({}, "", address);
    show(path);
    focusInput();
    scrollTo(0, path === "/chat" ? root.scrollHeight : 0);
    if (path === "/graph") drawGraph();
  };
  const focusInput = () => {
    // On a phone the keyboard would cover half of what was asked for.
    if (!matchMedia("(pointer: fine)").matches) return;
    const field = { search: "search-input", chat: "chat-input" }[root.dataset.view];
    if (field) document.getElementById(field)?.focus();
  };
  show(location.pathname);

  const search = (form, push) => {
    const data = new FormData(form);
    const query = data.get("q").trim(), mode = data.get("mode");
    if (!query) return;
    if (push) {
      const extra = mode === "hybrid" ? "" : "&mode=" + mode;
      go("/search", "/search?q=" + encodeURIComponent(query) + extra);
    }
    emitEvent("windlass-search", query, mode);
  };
  const ask = (question) => {
    if (!question.trim() || root.dataset.busy) return;
    go("/chat");
    emitEvent("windlass-chat", question);
  };
  const grow = (field) => { field.style.height = "auto"; field.style.height = Math.min(field.scrollHeight, 180) + "px"; };

  const drawGraph = () => emitEvent("windlass-graph", document.querySelector("input[name=graph]:checked")?.value || "");

  const dialog = () => document.querySelector("dialog.source");
  const showSource = () => {
    if (!dialog().open) dialog().showModal();
    requestAnimationFrame(() => requestAnimationFrame(() => {
      const text = document.querySelector(".source-text"), quote = document.getElementById("source-quote");
      if (text && quote) text.scrollTop = Math.max(0, quote.offsetTop - text.offsetTop - text.clientHeight / 4);
      text?.focus({ preventScroll: true });
    }));
  };
  // A new question moves to the top of the window and its answer grows below it; nothing jumps after that.
  const follow = () => requestAnimationFrame(() => requestAnimationFrame(() => {
    const turn = document.querySelector(".turns > :last-child");
    if (turn && turn.previousElementSibling) turn.scrollIntoView({ block: "start", behavior: "smooth" });
  }));
  const busy = (on) => { if (on) root.dataset.busy = "yes"; else delete root.dataset.busy; };

  const copy = async (button) => {
    const text = button.dataset.copy;
    try { await navigator.clipboard.writeText(text); } catch {
      const field = Object.assign(document.createElement("textarea"), { value: text });
      button.after(field); field.select(); document.execCommand("copy"); field.remove();
    }
    button.classList.add("copied");
    setTimeout(() => button.classList.remove("copied"), 1500);
  };

  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-view]");
    if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
      event.preventDefault();
      return go(new URL(link.href).pathname);
    }
    if (event.target === dialog()) return dialog().close();
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.open) emitEvent("windlass-open", button.dataset.open);
    else if (button.dataset.more) emitEvent("windlass-open", button.dataset.more);
    else if (button.dataset.node) emitEvent("windlass-node", button.dataset.node);
    else if (button.dataset.ask) ask(button.dataset.ask);
    else if (button.dataset.copy !== undefined) copy(button);
    else if (button.dataset.action === "theme") switchTheme();
    else if (button.dataset.action === "stop") emitEvent("windlass-stop");
    else if (button.dataset.action === "close-source") dialog().close();
  });
  document.addEventListener("submit", (event) => {
    event.preventDefault();
    const form = event.target;
    if (form.dataset.form === "search") search(form, true);
    else if (form.dataset.form === "chat" && !root.dataset.busy) {
      const field = form.elements.q, question = field.value;
      field.value = "";
      grow(field);
      ask(question);
    }
  });
  document.addEventListener("change", (event) => {
    if (event.target.name === "mode") search(event.target.form, true);
    else if (event.target.name === "graph") drawGraph();
  });
  document.addEventListener("input", (event) => { if (event.target.id === "chat-input") grow(event.target); });
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("input, textarea, dialog");
    if (event.target.id === "chat-input" && event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      event.target.form.requestSubmit();
    } else if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      go("/search");
    }
  });
  document.addEventListener("toggle", (event) => {
    if (!event.target.id) return;
    if (event.target.open) opened.add(event.target.id); else opened.delete(event.target.id);
  }, true);
  addEventListener("popstate", () => {
    show(location.pathname);
    if (location.pathname === "/graph") drawGraph();
    const form = document.querySelector("form[data-form=search]");
    const wanted = new URLSearchParams(location.search);
    if (location.pathname === "/search" && form && wanted.get("q")) {
      form.elements.q.value = wanted.get("q");
      form.elements.mode.value = wanted.get("mode") || "hybrid";
      search(form, false);
    }
  });
  addEventListener("DOMContentLoaded", () => {
    show(location.pathname);
    // The page is drawn by a script: the links and what was unfolded are put right whenever it has drawn.
    new MutationObserver(() => {
      show(location.pathname);
      for (const id of opened) { const part = document.getElementById(id); if (part && !part.open) part.open = true; }
    }).observe(document.getElementById("app"), { childList: true, subtree: true });
  });
  return { showSource, follow, busy };
})();
