export async function mountOverview(root, view, page, state) {}
