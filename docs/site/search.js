// Search without a server: the index is a script, which a page may load from a disk, on the first use of the box.
const box = document.getElementById('search');
const list = document.getElementById('found');
const root = document.documentElement.dataset.root;

// Titles come before texts, and then pages before the API.
function rank(entry, words) {
    const isIn = text => words.every(word => text.toLowerCase().includes(word));
    return (isIn(entry.title) ? 0 : isIn(entry.content) ? 2 : 4) + (entry.type === 'content' ? 0 : 1);
}

function link(entry) {
    const item = document.createElement('li');
    const anchor = document.createElement('a');
    anchor.href = entry.uri.replace('ROOT/', root);
    anchor.textContent = entry.title;
    item.append(anchor);
    return item;
}

function show() {
    const words = box.value.toLowerCase().split(/\s+/).filter(word => word !== '');
    const entries = words.length > 0 && window.siteIndex ? window.siteIndex : [];

    const found = entries
        .map(entry => [rank(entry, words), entry])
        .filter(([rank]) => rank < 4)
        .sort(([a, x], [b, y]) => a - b || x.title.length - y.title.length);

    list.replaceChildren(...found.slice(0, 20).map(([, entry]) => link(entry)));
}

box.addEventListener('input', show);

box.addEventListener('focus', () => {
    const index = document.createElement('script');
    index.src = root + 'content/index.js';
    index.onload = show;
    document.head.append(index);
}, { once: true });
