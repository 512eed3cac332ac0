// The browser's webcam: pushes pictures to a session until it is stopped, which ends its last scene.

import { ask, request } from "./api.js";

const EVERY_MS = 500, SIDE = 640;
let current = null; // { id, stop }

/** Ask for the webcam and push its pictures; returns the session's id. */
export async function capture() {
  if (!navigator.mediaDevices) throw new Error("This browser gives no webcam to a page without https.");
  const stream = await navigator.mediaDevices.getUserMedia({ video: { width: SIDE } });
  await stop();
  let id;
  try {
    ({ id } = await ask("v1/sessions", { body: {} }));
  } catch (error) {
    for (const track of stream.getTracks()) track.stop();
    throw error;
  }
  await ask(`v1/sessions/${id}`, { method: "PATCH", body: { title: "Webcam" } });
  const video = document.createElement("video");
  video.muted = true;
  video.srcObject = stream;
  await video.play();
  const canvas = document.createElement("canvas");
  let busy = false;
  const timer = setInterval(async () => {
    if (busy || !video.videoWidth) return;
    busy = true;
    const scale = Math.min(1, SIDE / Math.max(video.videoWidth, video.videoHeight));
    canvas.width = video.videoWidth * scale;
    canvas.height = video.videoHeight * scale;
    canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
    const jpeg = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.85));
    try {
      await request(`v1/sessions/${id}/frames`, { raw: jpeg });
    } catch (error) {
      if (error.status !== 429) stop(); // 429: it cannot keep up, and a later picture will do
    }
    busy = false;
  }, EVERY_MS);
  current = { id, stop() { clearInterval(timer); for (const track of stream.getTracks()) track.stop(); } };
  stream.getTracks()[0].addEventListener("ended", stop);
  return id;
}

export function capturing() { return current?.id; }

/** Stop the webcam; its session's open scene is closed and described. */
export async function stop() {
  if (!current) return;
  const { id, stop: end } = current;
  current = null;
  end();
  await ask(`v1/sessions/${id}/end`, { method: "POST" }).catch(() => {});
}
