// The pictures and videos that go with the next message, or with questions: dropped, pasted or
// chosen, and taken away again.

import { shownFilesOf } from "../data/files.js";
import { ACCEPTED, readPicture } from "../data/pictures.js";
import { ACCEPTED_VIDEOS, isVideoFile, readVideo } from "../data/videos.js";
import { announce, element, iconButton, toast } from "../dom.js";
import { thumbnail } from "./thumbnail.js";

export class PictureTray {
  /** zone: where pictures may be dropped. changed: called when there are others. videos: whether
   *  there is a place for them, too, where the model takes them. */
  constructor(session, zone, changed = () => {}, videos = false) {
    Object.assign(this, { session, changed, videos, pictures: [], added: Promise.resolve() });
    this.list = element("ul", { class: "thumbnails", "aria-label": "Pictures of this message", hidden: true });
    this.file = element("input", { type: "file", accept: videos ? `${ACCEPTED},${ACCEPTED_VIDEOS}` : ACCEPTED, multiple: true, class: "unseen", tabindex: "-1" });
    this.file.setAttribute("aria-label", "Pictures to add");
    this.file.addEventListener("change", async () => {
      await this.add([...this.file.files]);
      this.file.value = "";
    });
    this.button = iconButton("picture", "Add pictures", () => this.#choose());
    session.addEventListener("models", () => this.#model());
    this.#dropOn(zone);
  }

  /** Why the model that answers takes no pictures; "" where it does, or nobody knows yet. */
  get refusal() {
    const { card } = this.session;
    if (card === null || card.capabilities?.vision !== false) return "";
    return card.capabilities.vision_reason ?? `${card.id} does not see pictures.`;
  }

  /** The same of videos. */
  get videoRefusal() {
    const { card } = this.session;
    if (!this.videos) return "Only pictures can be added here.";
    return card === null || card.capabilities?.video !== false ? "" : `${card.id} takes no videos.`;
  }

  /** The pictures, which are no longer here then. */
  take() {
    const { pictures } = this;
    this.#set([]);
    return pictures;
  }

  /** Take in files, as far as they are pictures or videos; in the order in which they came, however long
   *  each takes to read. */
  async add(files) {
    if (files.length === 0) return;
    if (this.refusal) {
      toast(this.refusal, "error");
      return;
    }
    const reading = Promise.allSettled(files.map((file) => this.#read(file)));
    this.added = this.added.then(async () => this.#show(await reading));
    await this.added;
  }

  async #read(file) {
    if (!isVideoFile(file)) return readPicture(file);
    if (this.videoRefusal) throw new Error(this.videoRefusal);
    return readVideo(file);
  }

  #show(read) {
    for (const { reason } of read) if (reason) toast(reason.message, "error");
    const found = read.filter(({ status }) => status === "fulfilled").map(({ value }) => value);
    this.#set([...this.pictures, ...found]);
    if (found.length > 0) announce(found.length === 1 ? `${found[0].name} is added.` : `${found.length} pictures are added.`);
  }

  #choose() {
    if (this.refusal) toast(this.refusal, "error");
    else this.file.click();
  }

  #model() {
    // It can be pressed all the same, and then says why not.
    this.button.classList.toggle("dim", this.refusal !== "");
    this.button.title = this.refusal || "Add pictures";
  }

  #set(pictures) {
    this.pictures = pictures;
    this.list.hidden = pictures.length === 0;
    this.list.replaceChildren(...pictures.map((picture) => thumbnail(picture, () => this.#remove(picture))));
    this.changed();
  }

  #remove(picture) {
    this.#set(this.pictures.filter((other) => other !== picture));
    announce(`${picture.name} is removed.`);
    (this.list.querySelector("button") ?? this.button).focus();
  }

  #dropOn(zone) {
    const over = (event) => {
      if (!event.dataTransfer.types.includes("Files")) return;
      event.preventDefault();
      event.dataTransfer.dropEffect = this.refusal ? "none" : "copy";
      zone.classList.toggle("dropping", !this.refusal);
    };
    zone.addEventListener("dragenter", over);
    zone.addEventListener("dragover", over);
    zone.addEventListener("dragleave", (event) => {
      if (!zone.contains(event.relatedTarget)) zone.classList.remove("dropping");
    });
    zone.addEventListener("drop", (event) => {
      zone.classList.remove("dropping");
      if (!event.dataTransfer.types.includes("Files")) return;
      event.preventDefault();
      const found = shownFilesOf(event.dataTransfer);
      if (found.length === 0) toast(`Only pictures${this.videoRefusal ? "" : " and videos"} can be dropped here.`, "error");
      this.add(found);
    });
    zone.addEventListener("paste", (event) => {
      const found = shownFilesOf(event.clipboardData);
      if (found.length === 0) return;
      event.preventDefault();
      this.add(found);
    });
  }
}
