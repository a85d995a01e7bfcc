export async function mountFeatures(root, view, page, state) {}
