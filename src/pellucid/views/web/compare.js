export async function mountCompare(root, view, page, state) {}
