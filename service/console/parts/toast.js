// What was done, or was refused, in sight wherever the page is scrolled.
import { byId, drawProblem, make } from "../api.js";

const SHOWN = 7000; // ms

// Tells `what`, a string or an error; `undo` is {text, act}.
export function toast(what, undo) {
  const drawn = what instanceof Error ? drawProblem(what) : make("p", { class: "done" }, what);
  const element = make("div", { class: "toast" }, drawn);
  const close = () => element.remove();
  const act = () => {
    close();
    undo.act();
  };
  const buttons = [undo && make("button", { type: "button", class: "quiet", click: act }, undo.text), make("button", { type: "button", class: "quiet", click: close }, "Close")];
  if (undo || what instanceof Error) element.append(make("div", { class: "row" }, ...buttons));
  byId("toasts").append(element);
  const leave = () => (element.matches(":hover, :focus-within") ? setTimeout(leave, 1000) : close());
  setTimeout(leave, undo || what instanceof Error ? 3 * SHOWN : SHOWN);
  while (byId("toasts").children.length > 3) byId("toasts").firstChild.remove();
}
