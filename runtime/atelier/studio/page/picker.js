// Pictures to draw by: chosen in this browser, sent with each click on Draw. `studio.picked` has
// them by the name of their picker, as data URLs.
(() => {
  const studio = (window.studio = window.studio || {});
  const picked = (studio.picked = {});

  studio.picker = (element, name) => {
    const part = (which) => element.querySelector(`[data-part="${which}"]`);
    const tell = (words) => (part("told").textContent = words);
    const shown = part("shown"), file = part("file");
    element.querySelector(".picker").setAttribute("aria-label", `Picture of ${name}`);

    function show(source, words) {
      if (source) picked[name] = shown.src = source;
      else delete picked[name];
      shown.alt = `Picture of ${name}`;
      shown.hidden = part("remove").hidden = !source;
      tell(words);
    }

    async function take(chosen) {
      if (!chosen) return tell("Nothing was drawn in this browser yet.");
      const source = await studio.history.text(chosen);
      const image = new Image();
      image.src = source;
      try {
        await image.decode();
      } catch {
        return tell("This file is no picture that a browser can show.");
      }
      show(source, `${image.naturalWidth} x ${image.naturalHeight} pixels`);
    }

    file.addEventListener("change", () => {
      if (file.files.length) take(file.files[0]).then(() => (file.value = ""));
    });
    part("last").addEventListener("click", async () => take(await studio.history.last()));
    part("remove").addEventListener("click", () => show("", ""));
    element.addEventListener("dragover", (event) => event.preventDefault());
    element.addEventListener("drop", (event) => {
      event.preventDefault();
      if (event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
    });
    if (picked[name]) show(picked[name], "");
  };
})();
