// Files that a browser has been given.

/** The data: URL of a Blob. */
export function urlOf(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(blob);
  });
}

/** The files of a drop or a paste that are pictures or videos. */
export function shownFilesOf(transfer) {
  return [...(transfer?.files ?? [])].filter(({ type }) => /^(image|video)\//.test(type));
}
