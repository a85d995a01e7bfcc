import { h } from "./core.js";
import { MOUNTS } from "./mounts.js";

// A page whose data is in it: each [data-view] gets its moving view in front of its still picture, when a reader comes near it.
// Without scripts, on paper, and where a view fails, the still picture is what is seen.
async function begin(box) {
  const name = box.dataset.view;
  const moving = h("div.moving");
  box.classList.add("coming");
  near.unobserve(box);
  try {
    const { view, state } = JSON.parse(document.getElementById(`data-${name}`).textContent);
    box.prepend(moving);
    const { rest } = await MOUNTS[name](moving, view, { live: false }, state ?? {});
    box.classList.add("alive");
    await rest; // of a view that is seen before all of it stands
  } catch (error) {
    box.classList.remove("alive");
    moving.remove();
    console.error(`the view ${name} could not be drawn:`, error);
  }
  box.classList.remove("coming");
}

const near = new IntersectionObserver((entries) => entries.forEach(({ isIntersecting, target }) => isIntersecting && begin(target)), {
  rootMargin: "600px",
});
const boxes = [...document.querySelectorAll("[data-view]")];
// What is seen first begins at once: a frame with its still picture would take as long as the view.
const first = boxes.filter((box) => box.getBoundingClientRect().top < innerHeight);
for (const box of boxes) near.observe(box);
first.forEach(begin);
