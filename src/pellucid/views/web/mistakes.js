export async function mountMistakes(root, view, page, state) {}
