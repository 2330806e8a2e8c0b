// On the strip of tokens: a click picks one, arrow keys move between them. Gradio defines `element` and `trigger`.
const tokens = () => [...element.querySelectorAll('button.mu-token')];
element.addEventListener('click', (event) => {
  const token = event.target.closest('button.mu-token');
  if (!token) return;
  tokens().forEach((other) => other.setAttribute('aria-pressed', String(other === token)));
  trigger('pick', {index: Number(token.dataset.index)});
  setTimeout(() => {  // once the panels below have changed, scroll to them
    const inside = document.querySelector('#mu-panels'), still = matchMedia('(prefers-reduced-motion: reduce)').matches;
    if (inside.getBoundingClientRect().top < innerHeight / 2) return;
    inside.scrollIntoView({block: 'nearest', behavior: still ? 'auto' : 'smooth'});
  }, 300);
});
element.addEventListener('keydown', (event) => {
  const all = tokens(), at = all.indexOf(document.activeElement);
  const to = {ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1}[event.key];
  if (at < 0 || to === undefined) return;
  event.preventDefault();
  if (all[to]) all[to].focus();
});
