// Three planes of three scans, drawn from arrays that lie in memory: no slider waits for the server.

const PLANES = [
  { name: "Axial", across: 0, up: 1, through: 2, ends: ["L", "R", "P", "A"] },
  { name: "Coronal", across: 0, up: 2, through: 1, ends: ["L", "R", "I", "S"] },
  { name: "Sagittal", across: 1, up: 2, through: 0, ends: ["P", "A", "I", "S"] },
];
const SCANS = ["fixed", "moving", "moved"];
const LONGEST = 420; // pixels of the longest side of the scan
// Okabe and Ito, 2002, without black.
const COLOURS = [[230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [213, 94, 0], [204, 121, 167], [0, 114, 178]];
const GRID = [255, 176, 32];
const FOLDED = [240, 228, 66];
const ENDS = [[33, 102, 172], [247, 247, 247], [178, 24, 43]]; // of the Jacobian's scale, as the page's legend has them
const TYPES = { uint8: Uint8Array, int16: Int16Array };

// Positions between voxels along one axis, for each pixel: the voxel before, the one after, and the share of the latter.
function between(pixels, voxels, reversed) {
  const before = new Int32Array(pixels), after = new Int32Array(pixels), share = new Float32Array(pixels);
  for (let i = 0; i < pixels; i++) {
    const pixel = reversed ? pixels - 1 - i : i;
    const at = Math.min(Math.max(((pixel + 0.5) / pixels) * voxels - 0.5, 0), voxels - 1);
    before[i] = Math.floor(at);
    after[i] = Math.min(before[i] + 1, voxels - 1);
    share[i] = at - before[i];
  }
  return { before, after, share };
}

export class Viewer {
  // told: what view.json holds; buffer: what view.bin holds; place: the element that the planes go into.
  constructor(told, buffer, place) {
    this.shape = told.shape;
    this.spacing = told.spacing;
    this.fine = told.fine;
    this.octaves = told.octaves;
    this.arrays = {};
    const voxels = told.shape.reduce((product, n) => product * n);
    for (const [name, { start, type }] of Object.entries(told.arrays)) {
      this.arrays[name] = new TYPES[type](buffer, start, name === "displacement" ? 3 * voxels : voxels);
    }
    this.options = { blend: 1, contours: true, grid: false, jacobian: false };
    this.at = this.start();
    const sides = this.shape.map((n, axis) => n * this.spacing[axis]);
    this.scale = LONGEST / Math.max(...sides);
    this.step = Math.max(1, Math.round(Math.max(...this.shape) / 16));
    this.planes = PLANES.map((plane) => this.build(plane, place));
    this.draw();
  }

  // Where the planes cut at first: in the middle of the structures, or else of the scan.
  start() {
    const label = this.arrays.moved_label;
    const sum = [0, 0, 0];
    let count = 0;
    if (label) {
      const [, ny, nz] = this.shape;
      for (let i = 0; i < label.length; i++) {
        if (label[i]) {
          sum[0] += Math.floor(i / (ny * nz));
          sum[1] += Math.floor(i / nz) % ny;
          sum[2] += i % nz;
          count++;
        }
      }
    }
    return sum.map((total, axis) => (count ? Math.round(total / count) : Math.floor(this.shape[axis] / 2)));
  }

  build(plane, place) {
    const section = document.createElement("section");
    section.className = "plane";
    const row = document.createElement("div");
    row.className = "slider";
    const title = document.createElement("h3");
    const slider = document.createElement("input");
    const output = document.createElement("output");
    const id = `slice-${plane.name.toLowerCase()}`;
    title.textContent = plane.name;
    Object.assign(slider, { id, type: "range", min: 0, max: this.shape[plane.through] - 1 });
    slider.value = this.at[plane.through];
    slider.setAttribute("aria-label", `${plane.name} slice`);
    output.htmlFor = id;
    slider.addEventListener("input", () => this.go(plane.through, slider.valueAsNumber));
    row.append(title, slider, output);
    const pictures = document.createElement("div");
    pictures.className = "pictures";
    const width = Math.round(this.shape[plane.across] * this.spacing[plane.across] * this.scale);
    const height = Math.round(this.shape[plane.up] * this.spacing[plane.up] * this.scale);
    const canvases = SCANS.map((scan) => {
      const figure = document.createElement("figure");
      const frame = document.createElement("div");
      const canvas = document.createElement("canvas");
      const caption = document.createElement("figcaption");
      frame.className = "frame";
      Object.assign(canvas, { width: Math.max(width, 1), height: Math.max(height, 1) });
      canvas.style.width = `${(100 * width) / LONGEST}%`; // one scale in all planes
      canvas.setAttribute("role", "img");
      caption.textContent = scan;
      frame.append(canvas);
      figure.append(frame, caption);
      pictures.append(figure);
      canvas.addEventListener("pointerdown", (event) => this.point(plane, canvas, event));
      canvas.addEventListener("pointermove", (event) => event.buttons && this.point(plane, canvas, event));
      return canvas;
    });
    section.append(row, pictures);
    place.append(section);
    return {
      ...plane, slider, output, canvases, width, height,
      columns: between(width, this.shape[plane.across], false),
      rows: between(height, this.shape[plane.up], true),
    };
  }

  set(options) {
    Object.assign(this.options, options);
    this.draw();
  }

  go(axis, index) {
    this.at[axis] = Math.min(Math.max(index, 0), this.shape[axis] - 1);
    this.draw();
  }

  point(plane, canvas, event) {
    const box = canvas.getBoundingClientRect();
    const across = Math.floor(((event.clientX - box.left) / box.width) * this.shape[plane.across]);
    const up = Math.floor((1 - (event.clientY - box.top) / box.height) * this.shape[plane.up]);
    this.at[plane.across] = Math.min(Math.max(across, 0), this.shape[plane.across] - 1);
    this.at[plane.up] = Math.min(Math.max(up, 0), this.shape[plane.up] - 1);
    this.draw();
  }

  // One picture of the screen at a time, however many sliders move.
  draw() {
    this.pending ??= requestAnimationFrame(() => {
      this.pending = undefined;
      for (const plane of this.planes) this.drawPlane(plane);
    });
  }

  // The slice of an array, rows after rows; `part` is the component of a displacement.
  cut(name, plane, part = 0) {
    const array = this.arrays[name];
    const [nx, ny, nz] = this.shape;
    const strides = [ny * nz, nz, 1];
    const start = part * nx * ny * nz + this.at[plane.through] * strides[plane.through];
    const columns = this.shape[plane.across], rows = this.shape[plane.up];
    const slice = new array.constructor(columns * rows);
    for (let row = 0, to = 0; row < rows; row++) {
      let from = start + row * strides[plane.up];
      for (let column = 0; column < columns; column++, from += strides[plane.across]) slice[to++] = array[from];
    }
    return slice;
  }

  // A slice at each pixel, linear between voxels.
  smooth(slice, plane) {
    const { width, height, columns, rows } = plane, stride = this.shape[plane.across];
    const out = new Float32Array(width * height);
    for (let j = 0, to = 0; j < height; j++) {
      const low = rows.before[j] * stride, high = rows.after[j] * stride, up = rows.share[j];
      for (let i = 0; i < width; i++) {
        const left = columns.before[i], right = columns.after[i], share = columns.share[i];
        const below = slice[low + left] + (slice[low + right] - slice[low + left]) * share;
        const above = slice[high + left] + (slice[high + right] - slice[high + left]) * share;
        out[to++] = below + (above - below) * up;
      }
    }
    return out;
  }

  // A slice at each pixel, the nearest voxel's value.
  nearest(slice, plane) {
    const { width, height, columns, rows } = plane, stride = this.shape[plane.across];
    const out = new slice.constructor(width * height);
    for (let j = 0, to = 0; j < height; j++) {
      const row = (rows.share[j] < 0.5 ? rows.before[j] : rows.after[j]) * stride;
      for (let i = 0; i < width; i++) out[to++] = slice[row + (columns.share[i] < 0.5 ? columns.before[i] : columns.after[i])];
    }
    return out;
  }

  drawPlane(plane) {
    const index = this.at[plane.through];
    plane.slider.value = index;
    plane.output.textContent = `${index + 1} of ${this.shape[plane.through]}`;
    const fixed = this.smooth(this.cut("fixed", plane), plane);
    SCANS.forEach((scan, column) => {
      const canvas = plane.canvases[column];
      const grey = scan === "fixed" ? fixed : this.smooth(this.cut(scan, plane), plane);
      const share = scan === "moved" ? this.options.blend : 1;
      const pixels = new Uint8ClampedArray(4 * grey.length);
      for (let i = 0, to = 0; i < grey.length; i++, to += 4) {
        pixels[to] = pixels[to + 1] = pixels[to + 2] = fixed[i] + (grey[i] - fixed[i]) * share;
        pixels[to + 3] = 255;
      }
      if (scan === "moved" && this.options.jacobian) this.paintJacobian(pixels, plane);
      if (scan === "moved" && this.options.grid) this.paintGrid(pixels, plane);
      const label = scan === "moving" ? "moving_label" : "moved_label";
      if (this.options.contours && this.arrays[label]) this.paintContours(pixels, plane, label);
      const context = canvas.getContext("2d");
      context.putImageData(new ImageData(pixels, plane.width, plane.height), 0, 0);
      this.paintMarks(context, plane);
      canvas.setAttribute("aria-label", `${scan} scan, ${plane.name.toLowerCase()} slice ${index + 1}`);
    });
  }

  paintJacobian(pixels, plane) {
    const values = this.nearest(this.cut("jacobian", plane), plane);
    for (let i = 0, to = 0; i < values.length; i++, to += 4) {
      const at = (values[i] - 1) / 127; // 0 to 2, and 1 keeps the volume
      const [from, until, part] = at < 1 ? [ENDS[0], ENDS[1], at] : [ENDS[1], ENDS[2], at - 1];
      for (let c = 0; c < 3; c++) {
        const colour = values[i] ? from[c] + (until[c] - from[c]) * part : FOLDED[c];
        pixels[to + c] = values[i] ? 0.4 * pixels[to + c] + 0.6 * colour : colour;
      }
    }
  }

  // Lines where a component of x + u(x) is a multiple of the step: a square grid on the moving scan, as it came to lie.
  paintGrid(pixels, plane) {
    const { width, height, columns, rows } = plane;
    const cells = [plane.across, plane.up].map((axis) => {
      const moved = this.smooth(this.cut("displacement", plane, axis), plane);
      for (let j = 0, i = 0; j < height; j++) {
        for (let k = 0; k < width; k++, i++) {
          const at = axis === plane.across ? columns.before[k] + columns.share[k] : rows.before[j] + rows.share[j];
          moved[i] = Math.floor((at + moved[i] / this.fine) / this.step);
        }
      }
      return moved;
    });
    this.paintEdges(pixels, plane, (one, other) => {
      return cells.some((cell) => cell[one] !== cell[other]) ? GRID : null;
    });
  }

  paintContours(pixels, plane, name) {
    const label = this.nearest(this.cut(name, plane), plane);
    this.paintEdges(pixels, plane, (one, other) => {
      return label[one] === label[other] ? null : COLOURS[(Math.max(label[one], label[other]) - 1) % COLOURS.length];
    });
  }

  // Both pixels of each pair of neighbours that `colour` gives a colour for.
  paintEdges(pixels, { width, height }, colour) {
    for (let j = 0, i = 0; j < height; j++) {
      for (let k = 0; k < width; k++, i++) {
        for (const other of [k + 1 < width ? i + 1 : i, j + 1 < height ? i + width : i]) {
          const found = other === i ? null : colour(i, other);
          if (found) for (const one of [i, other]) pixels.set(found, 4 * one);
        }
      }
    }
  }

  // Where left is, and where the other planes cut.
  paintMarks(context, plane) {
    const { width, height, ends } = plane;
    const x = ((this.at[plane.across] + 0.5) / this.shape[plane.across]) * width;
    const y = (1 - (this.at[plane.up] + 0.5) / this.shape[plane.up]) * height;
    context.strokeStyle = "#7cc0f2";
    context.lineWidth = 2;
    context.beginPath();
    for (const [x0, y0, x1, y1] of [[x, 0, x, 10], [x, height - 10, x, height], [0, y, 10, y], [width - 10, y, width, y]]) {
      context.moveTo(x0, y0);
      context.lineTo(x1, y1);
    }
    context.stroke();
    context.font = "600 15px system-ui, sans-serif";
    context.textBaseline = "middle";
    context.lineWidth = 3;
    context.strokeStyle = "#000";
    context.fillStyle = "#fff";
    const places = [[13, height / 2, "left"], [width - 13, height / 2, "right"], [width / 2, height - 19, "center"], [width / 2, 19, "center"]];
    places.forEach(([left, top, align], i) => {
      context.textAlign = align;
      context.strokeText(ends[i], left, top);
      context.fillText(ends[i], left, top);
    });
  }
}
