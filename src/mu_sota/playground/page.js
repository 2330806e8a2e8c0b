// Ctrl+Enter anywhere on the page is Generate.
document.addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  document.querySelector('#mu-generate')?.click();
});
