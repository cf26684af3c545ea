/* Stand-in for the Xendit Components web SDK: shows the simulator's hosted page of the session in a frame. */
class XenditComponents extends EventTarget {
  constructor({ componentsSdkKey }) { super(); this.key = componentsSdkKey; }
  mount(target) {
    const place = typeof target === "string" ? document.querySelector(target) : target;
    this.frame = document.createElement("iframe");
    this.frame.src = {{ base_url | tojson }} + "/components?key=" + encodeURIComponent(this.key);
    this.frame.style.cssText = "width:100%;min-height:760px;border:0";
    this.listener = (event) => {
      if (event.source === this.frame.contentWindow && event.data && event.data.source === "xendit-simulator")
        this.dispatchEvent(new CustomEvent(event.data.type, { detail: event.data }));
    };
    window.addEventListener("message", this.listener);
    place.replaceChildren(this.frame);
    return this;
  }
  unmount() { window.removeEventListener("message", this.listener); this.frame.remove(); }
}
window.XenditComponents = XenditComponents;
