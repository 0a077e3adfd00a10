// From files and drawings to what is sent: pictures with an address to show and a text to send.

// A photograph of a telephone is made smaller here, for the model takes much smaller ones anyway.
const SMALL_FILE = 200_000;

/** Return `{url, data}` of a file; `side` is how large a picture of a larger file becomes. */
export async function pictureOf(blob, side) {
  const kept = blob.size <= SMALL_FILE ? blob : await smaller(blob, side);
  return { url: URL.createObjectURL(kept), data: await base64(kept) };
}

export function forgotten(picture) {
  URL.revokeObjectURL(picture.url);
}

async function smaller(blob, side) {
  let image;
  try {
    image = await createImageBitmap(blob);
  } catch {
    return blob; // the server says in words what is wrong with it
  }
  const scale = Math.min(1, side / Math.max(image.width, image.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(image.width * scale));
  canvas.height = Math.max(1, Math.round(image.height * scale));
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.fillStyle = "#fff"; // transparent pictures are laid on paper, as everywhere
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  image.close();
  return new Promise((done) => { canvas.toBlob((made) => done(made || blob), "image/jpeg", 0.92); });
}

function base64(blob) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => failed(new Error("A file cannot be read."));
    reader.readAsDataURL(blob);
  });
}
