// The canvas of the edit tab: a picture, a mask painted over it, and room added around it. What
// leaves is two PNGs of equal size; in the mask, white is to be painted anew.
(() => {
  const studio = (window.studio = window.studio || {});
  const MASK = "rgba(236, 72, 153, 1)"; // shown at half opacity by the style sheet

  studio.painter = (element) => {
    const part = (name) => element.querySelector(`[data-part="${name}"]`);
    const picture = part("picture"), mask = part("mask"), cursor = part("cursor");
    const brush = part("brush"), stage = part("stage");
    const undone = [];
    let erasing = false, last = null, held = null;
    let keys = { x: 0, y: 0 };

    const pen = () => mask.getContext("2d");
    const loaded = () => stage.classList.contains("loaded");

    function sized(width, height) {
      for (const canvas of [picture, mask]) Object.assign(canvas, { width, height });
      stage.style.aspectRatio = `${width} / ${height}`;
      keys = { x: width / 2, y: height / 2 };
    }

    async function load(source) {
      const image = new Image();
      image.src = source;
      try {
        await image.decode();
      } catch {
        tell("This file is no picture that a browser can show.");
        return;
      }
      sized(image.naturalWidth, image.naturalHeight);
      picture.getContext("2d").drawImage(image, 0, 0);
      stage.classList.add("loaded");
      undone.length = 0;
      tell(`${picture.width} x ${picture.height} pixels`);
    }

    const tell = (words) => (part("told").textContent = words);
    const remember = () => {
      undone.push(pen().getImageData(0, 0, mask.width, mask.height));
      if (undone.length > 20) undone.shift();
    };

    // One stroke, or with no end a dot. Erasing takes paint away.
    function stroke(from, to) {
      const context = pen();
      context.globalCompositeOperation = erasing ? "destination-out" : "source-over";
      context.strokeStyle = context.fillStyle = MASK;
      context.lineWidth = brush.value * Math.max(mask.width, mask.height) / 100;
      context.lineCap = context.lineJoin = "round";
      context.beginPath();
      context.moveTo(from.x, from.y);
      context.lineTo(to.x + 0.01, to.y);
      context.stroke();
    }

    const place = (event) => {
      const box = mask.getBoundingClientRect();
      return {
        x: ((event.clientX - box.left) / box.width) * mask.width,
        y: ((event.clientY - box.top) / box.height) * mask.height,
      };
    };

    function ring(at) {
      const size = (brush.value * Math.max(mask.width, mask.height)) / mask.width;
      cursor.style.width = `${size}%`;
      cursor.style.left = `${(at.x / mask.width) * 100}%`;
      cursor.style.top = `${(at.y / mask.height) * 100}%`;
    }

    mask.addEventListener("pointerdown", (event) => {
      if (!loaded()) return;
      event.preventDefault();
      mask.focus({ preventScroll: true }); // the page must not move under the brush
      mask.setPointerCapture(event.pointerId);
      remember();
      last = place(event);
      stroke(last, last);
    });
    mask.addEventListener("pointermove", (event) => {
      const here = place(event);
      ring(here);
      if (!last) return;
      stroke(last, here);
      last = here;
    });
    for (const end of ["pointerup", "pointercancel"]) {
      mask.addEventListener(end, () => (last = null));
    }

    // With keys: arrows move the brush, space paints under it.
    mask.addEventListener("keydown", (event) => {
      if (!loaded()) return;
      const step = Math.max(2, Math.max(mask.width, mask.height) / 50);
      const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
      const move = moves[event.key];
      if (event.key === " ") {
        if (!held) remember();
        held = true;
        stroke(keys, keys);
      } else if (move) {
        const before = { ...keys };
        keys.x = Math.min(mask.width, Math.max(0, keys.x + move[0] * step));
        keys.y = Math.min(mask.height, Math.max(0, keys.y + move[1] * step));
        if (held) stroke(before, keys);
      } else return;
      ring(keys);
      event.preventDefault();
    });
    mask.addEventListener("keyup", (event) => event.key === " " && (held = null));

    // Room on one side: the picture's edge is drawn out into it, and the mask covers it.
    function extend(side) {
      if (!loaded()) return;
      const share = Number(part("extent").value) / 100;
      const sideways = side === "left" || side === "right";
      const whole = sideways ? picture.width : picture.height;
      const more = Math.max(16, Math.round((whole * share) / 16) * 16); // models cut to multiples
      const old = document.createElement("canvas"), painted = document.createElement("canvas");
      for (const [copy, of] of [[old, picture], [painted, mask]]) {
        Object.assign(copy, { width: of.width, height: of.height });
        copy.getContext("2d").drawImage(of, 0, 0);
      }
      const x = side === "left" ? more : 0, y = side === "top" ? more : 0;
      sized(old.width + (sideways ? more : 0), old.height + (sideways ? 0 : more));
      const context = picture.getContext("2d");
      const edge = {
        left: [0, 0, 1, old.height, 0, 0, more, old.height],
        right: [old.width - 1, 0, 1, old.height, old.width, 0, more, old.height],
        top: [0, 0, old.width, 1, 0, 0, old.width, more],
        bottom: [0, old.height - 1, old.width, 1, 0, old.height, old.width, more],
      }[side];
      context.drawImage(old, ...edge);
      context.drawImage(old, x, y);
      pen().drawImage(painted, x, y);
      pen().globalCompositeOperation = "source-over";
      pen().fillStyle = MASK;
      pen().fillRect(...edge.slice(4));
      undone.length = 0;
      tell(`${picture.width} x ${picture.height} pixels`);
    }

    const acts = {
      undo: () => undone.length && pen().putImageData(undone.pop(), 0, 0),
      clear: () => { remember(); pen().clearRect(0, 0, mask.width, mask.height); },
      erase: (button) => {
        erasing = !erasing;
        button.setAttribute("aria-pressed", String(erasing));
      },
      left: () => extend("left"), right: () => extend("right"),
      top: () => extend("top"), bottom: () => extend("bottom"),
    };
    element.addEventListener("click", (event) => {
      const button = event.target.closest("[data-act]");
      if (button && (loaded() || button.dataset.act === "erase")) acts[button.dataset.act](button);
    });

    const take = async (file) => file && load(await studio.history.text(file));
    part("file").addEventListener("change", (event) => take(event.target.files[0]));
    stage.addEventListener("dragover", (event) => event.preventDefault());
    stage.addEventListener("drop", (event) => {
      event.preventDefault();
      take(event.dataTransfer.files[0]);
    });

    // White where there is paint; null if there is none: then the whole picture is redrawn.
    function painted() {
      const copy = document.createElement("canvas");
      Object.assign(copy, { width: mask.width, height: mask.height });
      const pixels = pen().getImageData(0, 0, mask.width, mask.height);
      let some = false;
      for (let index = 0; index < pixels.data.length; index += 4) {
        const white = pixels.data[index + 3] > 127 ? 255 : 0;
        some = some || white > 0;
        pixels.data.set([white, white, white, 255], index);
      }
      copy.getContext("2d").putImageData(pixels, 0, 0);
      return some ? copy.toDataURL("image/png") : null;
    }

    studio.canvas = {
      load,
      payload: () =>
        loaded() ? { picture: picture.toDataURL("image/png"), mask: painted() } : null,
    };
    if (studio.awaited) load(studio.awaited);
    studio.awaited = null;
    studio.history.show();
  };
})();
