// Conversations in this browser: IndexedDB, one record each.

const NAME = "mlx_parallm";
const STORE = "conversations";

let opening = null;

function open() {
  opening ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opening;
}

async function run(mode, work) {
  const database = await open();
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(STORE, mode);
    const request = work(transaction.objectStore(STORE));
    transaction.oncomplete = () => resolve(request.result);
    transaction.onabort = () => reject(transaction.error);
  });
}

/** Every conversation, the newest first. */
export async function all() {
  const found = await run("readonly", (store) => store.getAll());
  return found.sort((one, other) => other.updated - one.updated);
}

export function save(conversation) {
  return run("readwrite", (store) => store.put(conversation));
}

export function remove(id) {
  return run("readwrite", (store) => store.delete(id));
}
