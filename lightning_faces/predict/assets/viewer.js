// Shows the GLB of each <canvas data-glb="ID"> of a page, turned by mouse, finger or arrow keys; ID is that of a <script> with the
// file in base64. Built once into viewer.min.js, which pages embed:
//
//   npm install three@0.187.0 esbuild@0.28.2
//   npx esbuild viewer.js --bundle --minify --format=iife --charset=ascii --legal-comments=inline \
//     --banner:js="$(cat banner.js)" --outfile=viewer.min.js

import {
  Box3, DirectionalLight, HemisphereLight, PerspectiveCamera, Scene, Vector3, WebGLRenderer,
} from "three";
import { OrbitControls } from "three/examples/jsm/controls/OrbitControls.js";
import { GLTFLoader } from "three/examples/jsm/loaders/GLTFLoader.js";

// One renderer for all: browsers allow a page about 16 WebGL contexts.
let renderer = null;

function bytes(text) {
  const binary = atob(text.trim());
  const data = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) data[i] = binary.charCodeAt(i);
  return data.buffer;
}

async function show(canvas) {
  const file = await new GLTFLoader().parseAsync(bytes(document.getElementById(canvas.dataset.glb).textContent), "");
  const scene = new Scene();
  scene.add(file.scene);
  const box = new Box3().setFromObject(file.scene);
  const centre = box.getCenter(new Vector3());
  const radius = box.getSize(new Vector3()).length() / 2;
  const camera = new PerspectiveCamera(25, 1, radius / 50, radius * 50);
  // The light goes with the viewer.
  const light = new DirectionalLight(0xffffff, 2.6);
  light.position.set(0.4, 0.6, 1);
  camera.add(light);
  scene.add(camera, new HemisphereLight(0xffffff, 0x8a8078, 3.2));
  const home = centre.clone().add(new Vector3(0, 0, 3 * radius));
  const controls = new OrbitControls(camera, canvas);
  const context = canvas.getContext("2d");

  function draw() {
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    const width = Math.max(1, Math.round(canvas.clientWidth * ratio));
    const height = Math.max(1, Math.round(canvas.clientHeight * ratio));
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    camera.aspect = width / height;
    camera.updateProjectionMatrix();
    renderer.setSize(width, height, false);
    renderer.render(scene, camera);
    context.clearRect(0, 0, width, height);
    context.drawImage(renderer.domElement, 0, 0, width, height);
  }

  function reset() {
    camera.position.copy(home);
    controls.target.copy(centre);
    controls.update();
    draw();
  }

  controls.enablePan = false;
  // A finger that moves up and down scrolls the page.
  canvas.style.touchAction = "pan-y";
  controls.minDistance = radius * 1.2;
  controls.maxDistance = radius * 12;
  // Two fingers and the wheel with Ctrl zoom; the wheel alone scrolls the page.
  canvas.addEventListener("wheel", (event) => { if (!event.ctrlKey) event.stopImmediatePropagation(); }, { capture: true });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-0.15, 0], ArrowRight: [0.15, 0], ArrowUp: [0, -0.15], ArrowDown: [0, 0.15] }[event.key];
    if (!step) return;
    event.preventDefault();
    const around = camera.position.clone().sub(controls.target);
    around.applyAxisAngle(new Vector3(0, 1, 0), -step[0]);
    const side = new Vector3().crossVectors(new Vector3(0, 1, 0), around).normalize();
    around.applyAxisAngle(side, step[1]);
    camera.position.copy(controls.target).add(around);
    controls.update();
    draw();
  });
  canvas.addEventListener("dblclick", reset);
  controls.addEventListener("change", draw);
  new ResizeObserver(draw).observe(canvas);
  reset();
  canvas.dataset.shown = String(renderer.info.render.triangles);
}

function start() {
  const canvases = [...document.querySelectorAll("canvas[data-glb]")];
  if (canvases.length === 0) return;
  const fail = (canvas, error) => {
    canvas.dataset.failed = String(error);
    canvas.nextElementSibling.textContent = "This browser cannot show the face in 3D (no WebGL).";
  };
  try {
    renderer = new WebGLRenderer({ antialias: true, alpha: true, preserveDrawingBuffer: true });
  } catch (error) {
    canvases.forEach((canvas) => fail(canvas, error));
    return;
  }
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      watcher.unobserve(entry.target);
      show(entry.target).catch((error) => fail(entry.target, error));
    }
  }, { rootMargin: "400px" });
  canvases.forEach((canvas) => watcher.observe(canvas));
}

start();
