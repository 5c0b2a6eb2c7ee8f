// One tooltip for everything that has data-tip: by pointer, by keyboard focus, by tap; Escape hides it.
function tooltips() {
  const box = element("div", { role: "tooltip", id: "tip", hidden: "" });
  document.body.append(box);
  let owner = null;
  const hide = () => {
    owner?.removeAttribute("aria-describedby");
    owner = null;
    box.hidden = true;
  };
  const show = (event) => {
    const target = event.target.closest?.("[data-tip]");
    if (!target) return hide();
    if (target === owner) return;
    hide();
    owner = target;
    box.textContent = target.dataset.tip;
    box.hidden = false;
    target.setAttribute("aria-describedby", "tip");
    place();
  };
  const place = () => {
    const at = owner.getBoundingClientRect();
    const size = box.getBoundingClientRect();
    const left = at.left + at.width / 2 - size.width / 2;
    const above = at.top - size.height - 8;
    box.style.left = `${Math.max(6, Math.min(left, document.documentElement.clientWidth - size.width - 6))}px`;
    box.style.top = `${above > 4 ? above : at.bottom + 8}px`;
  };
  document.addEventListener("pointerover", show);
  document.addEventListener("focusin", show);
  document.addEventListener("focusout", hide);
  // Focus by the keyboard scrolls its target into view.
  const follow = () => owner && (owner === document.activeElement ? place() : hide());
  document.addEventListener("scroll", follow, { capture: true, passive: true });
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
}
