export async function mountAttention(root, view, page, state) {}
