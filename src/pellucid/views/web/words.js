export async function mountWords(root, view, page, state) {}
