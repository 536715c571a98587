// What the page does beside Gradio: buttons of pictures, the before-and-after slider, keys that
// stay in this tab, light and dark.
(() => {
  const studio = (window.studio = window.studio || {});

  const tab = (name) => document.querySelector(`#${name}-tab-button`)?.click();

  async function edit(figure) {
    const source = await studio.history.text(
      await (await fetch(figure.querySelector("img").src)).blob());
    tab("edit");
    if (studio.canvas) studio.canvas.load(source);
    else studio.awaited = source; // the tab is made when it is first seen
  }

  const acts = {
    download: (figure) => studio.history.download(figure),
    edit,
    take: (_, button) => edit(button),
    again: (figure) => studio.tell({ again: figure.dataset.parameters, file: "" }),
    remove: async (figure) => {
      await studio.history.remove(figure.dataset.id);
      studio.history.show();
    },
    clear: async () => {
      if (!confirm("Remove all pictures of this browser's history?")) return;
      await studio.history.clear();
      studio.history.show();
    },
    scheme: () => scheme(!document.body.classList.contains("dark")),
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("[data-do]");
    if (button) acts[button.dataset.do](button.closest("figure"), button);
  });

  document.addEventListener("input", (event) => {
    if (event.target.matches?.(".slider")) {
      event.target.previousElementSibling.style.setProperty("--x", `${event.target.value}%`);
    }
  });

  // Files dropped into the history go to the server once, which reads what they hold and answers.
  studio.importer = (element) => {
    const send = async (files) => {
      for (const file of files) studio.tell({ again: "", file: await studio.history.text(file) });
    };
    const input = element.querySelector("input[type=file]");
    input.addEventListener("change", () => send(input.files).then(() => (input.value = "")));
    element.addEventListener("dragover", (event) => event.preventDefault());
    element.addEventListener("drop", (event) => {
      event.preventDefault();
      send(event.dataTransfer.files);
    });
    studio.history.show();
  };

  // Keys live as long as the tab, and go nowhere but to the studio with each request.
  studio.storedKeys = (count) => {
    const stored = JSON.parse(sessionStorage.getItem("atelier-keys") || "[]");
    return Array.from({ length: count }, (_, index) => stored[index] || "");
  };
  studio.storeKeys = (...keys) => sessionStorage.setItem("atelier-keys", JSON.stringify(keys));

  function scheme(dark) {
    document.body.classList.toggle("dark", dark);
    localStorage.setItem("atelier-scheme", dark ? "dark" : "light");
  }

  // Where the page is one column, what is drawn stands below the form: show it.
  document.addEventListener("click", (event) => {
    const tab = event.target.closest?.(".reveals")?.closest("[role=tabpanel]");
    if (tab && matchMedia("(max-width: 640px)").matches) {
      tab.querySelector("[id$=-progress]").scrollIntoView();
    }
  });

  // The chat scrolls by itself, so it can be reached and is read out as it grows.
  studio.log = (element) => {
    element.tabIndex = 0;
    element.setAttribute("role", "log");
    element.setAttribute("aria-label", "Chat");
  };

  studio.start = () => {
    const chosen = localStorage.getItem("atelier-scheme");
    if (chosen) scheme(chosen === "dark");
    document.documentElement.lang = "en";
  };
})();
