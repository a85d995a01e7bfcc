export async function mountMasks(root, view, page, state) {}
