// The history of pictures, in this browser alone: IndexedDB holds the files with their parameters,
// and nothing of it is on a server. Other scripts of the page use `studio.history`.
(() => {
  const studio = (window.studio = window.studio || {});
  const MOST = 300; // pictures kept; the oldest give way

  const opened = new Promise((resolve, reject) => {
    const request = indexedDB.open("atelier-studio", 1);
    request.onupgradeneeded = () =>
      request.result.createObjectStore("pictures", { keyPath: "id", autoIncrement: true });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

  async function within(mode, work) {
    const store = (await opened).transaction("pictures", mode).objectStore("pictures");
    const request = work(store);
    return new Promise((resolve, reject) => {
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => reject(request.error);
    });
  }

  const all = () => within("readonly", (store) => store.getAll());
  const blob = async (url) => (await fetch(url)).blob();
  const text = (file) =>
    new Promise((resolve) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result);
      reader.readAsDataURL(file);
    });

  // Keep every finished picture of a part of the page that is not kept yet. They come over the wire
  // inside the page, so they are turned into files here.
  const kept = new Set();
  async function keep(root) {
    for (const figure of root.querySelectorAll("figure[data-drawn]")) {
      if (kept.has(figure.dataset.drawn)) continue;
      kept.add(figure.dataset.drawn);
      const file = await blob(figure.querySelector("img").src);
      await add(file, figure.dataset.parameters, figure.dataset.caption);
    }
  }

  async function add(file, parameters, caption) {
    const created = Date.now();
    await within("readwrite", (store) => store.add({ file, parameters, caption, created }));
    const keys = await within("readonly", (store) => store.getAllKeys());
    for (const key of keys.slice(0, Math.max(0, keys.length - MOST))) await remove(key);
    show();
  }

  // The file of the last picture; contact sheets have no parameters.
  const last = async () => (await all()).findLast((entry) => entry.parameters)?.file;

  const remove = (id) => within("readwrite", (store) => store.delete(Number(id)));
  const clear = () => within("readwrite", (store) => store.clear());

  function button(action, words) {
    const made = document.createElement("button");
    made.type = "button";
    made.dataset.do = action;
    made.textContent = words;
    return made;
  }

  function card(entry) {
    const figure = document.createElement("figure");
    figure.className = "tile picture";
    Object.assign(figure.dataset, {
      parameters: entry.parameters, caption: entry.caption, id: entry.id,
    });
    const parameters = entry.parameters ? JSON.parse(entry.parameters) : {};
    const image = document.createElement("img");
    image.src = URL.createObjectURL(entry.file);
    image.alt = parameters.prompt || "Contact sheet";
    const caption = document.createElement("figcaption");
    const prompt = document.createElement("b");
    prompt.textContent = parameters.prompt || "Contact sheet";
    caption.append(prompt, document.createElement("br"), entry.caption || "");
    const actions = document.createElement("div");
    actions.className = "actions";
    actions.append(button("download", "Download"));
    if (entry.parameters) {
      actions.append(button("edit", "Edit"), button("again", "Again with these"));
    }
    actions.append(button("remove", "Remove"));
    figure.append(image, caption, actions);
    return figure;
  }

  // Fill every place of the page that shows the history: the tab, and the row of the edit tab.
  async function show() {
    const entries = (await all()).reverse();
    for (const place of document.querySelectorAll("[data-history]")) {
      for (const image of place.querySelectorAll("img")) URL.revokeObjectURL(image.src);
      const few = place.dataset.history === "row";
      if (few) place.replaceChildren(...entries.slice(0, 8).map(thumb));
      else place.replaceChildren(...entries.map(card));
      place.classList.toggle("bare", entries.length === 0);
    }
  }

  function thumb(entry) {
    const made = button("take", "");
    made.className = "thumb";
    const image = document.createElement("img");
    image.src = URL.createObjectURL(entry.file);
    image.alt = "Edit: " + ((entry.parameters && JSON.parse(entry.parameters).prompt) || "sheet");
    made.append(image);
    return made;
  }

  async function download(figure) {
    const link = document.createElement("a");
    const parameters = figure.dataset.parameters ? JSON.parse(figure.dataset.parameters) : {};
    const words = (parameters.prompt || "contact sheet").toLowerCase().replace(/[^a-z0-9]+/g, "-");
    link.href = figure.querySelector("img").src;
    link.download = `${words.slice(0, 60)}${parameters.seed === undefined ? "" : "-" + parameters.seed}.png`;
    link.click();
  }

  studio.history = { keep, add, show, last, remove, clear, download, text };
})();
