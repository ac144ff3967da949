// Asks before something is changed for others: true where it was confirmed; focus goes back where it was.
import { make } from "../api.js";

export function confirmed(title, words, action, danger = false) {
  const before = document.activeElement;
  return new Promise((done) => {
    const end = (answer) => {
      dialog.remove();
      before?.focus();
      done(answer);
    };
    const buttons = [make("button", { type: "button", class: danger && "danger", click: () => end(true) }, action), make("button", { type: "button", class: "quiet", click: () => end(false) }, "Cancel")];
    const dialog = make("dialog", { "aria-label": title, cancel: () => end(false) }, make("h2", {}, title), make("p", {}, words), make("div", { class: "row" }, ...buttons));
    document.body.append(dialog);
    dialog.showModal();
  });
}
