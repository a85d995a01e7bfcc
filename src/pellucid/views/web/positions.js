export async function mountPositions(root, view, page, state) {}
