/* Stand-in for the Xendit Components web SDK: shows the simulator's hosted page of the session in a frame.
   The calls of the SDK's public source that a minimal page needs; the frame has its own button, so submit() is never
   asked for ("submission-ready" is not sent). */
class XenditSessionSdk extends EventTarget {
  constructor({ sessionClientKey, componentsSdkKey }) { super(); this.key = sessionClientKey || componentsSdkKey; }
  createChannelPickerComponent() {
    if (this.frame) return this.frame;
    this.frame = document.createElement("iframe");
    this.frame.src = {{ base_url | tojson }} + "/components?key=" + encodeURIComponent(this.key);
    this.frame.style.cssText = "width:100%;min-height:760px;border:0";
    window.addEventListener("message", (event) => {
      if (event.source === this.frame.contentWindow && event.data && event.data.source === "xendit-simulator")
        this.dispatchEvent(new CustomEvent(event.data.type, { detail: event.data }));
    });
    return this.frame;
  }
  submit() { throw new Error("submit in the frame"); }
}
window.XenditSessionSdk = window.XenditComponents = XenditSessionSdk;
