export async function mountCurves(root, view, page, state) {}
