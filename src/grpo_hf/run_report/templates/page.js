// The page is whole without this: numbers under the pointer, and links into what is folded.
for (const mark of document.querySelectorAll("figure [role='graphics-symbol'][aria-label]")) {
  const title = document.createElementNS("http://www.w3.org/2000/svg", "title");
  title.textContent = mark.getAttribute("aria-label");
  mark.append(title);
}
function unfold() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let place = target; place; place = place.parentElement) {
    if (place.tagName === "DETAILS") place.open = true;
  }
  if (target) target.scrollIntoView();
}
addEventListener("hashchange", unfold);
unfold();
// What is folded belongs on paper as well.
addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details")) folded.open = true;
});
