// Where the numbers come from: JSON by name, and the stream of events.

export async function json(path) {
  const answer = await fetch(path, { headers: { accept: "application/json" } });
  if (!answer.ok) throw new Error(`${path}: ${answer.status} ${(await answer.text()).trim()}`);
  return answer.json();
}

const KINDS = ["view", "decisions", "point", "started", "missed", "line", "over"];
// Silence after which the connection counts as lost: the view comes every second, a large run's every 10 at most.
const SILENCE = 15000;

// Calls `on[kind](data)` for every event, and `on.link(state)` with "live", "lost" or "over". The browser connects again
// by itself, and so does this where the browser has given up.
export function follow(on) {
  let source;
  let heard = 0;
  const connect = () => {
    source?.close();
    source = new EventSource("api/events");
    source.onopen = () => {
      heard = Date.now();
      on.link("live");
    };
    source.onerror = () => on.link("lost");
    for (const kind of KINDS) {
      source.addEventListener(kind, (event) => {
        heard = Date.now();
        if (kind === "over") {
          // The same run may be carried on under this address.
          source.close();
          on.link("over");
        }
        on[kind]?.(JSON.parse(event.data));
      });
    }
  };
  connect();
  setInterval(() => {
    if (source.readyState === EventSource.CLOSED) connect();
    else if (Date.now() - heard > SILENCE) on.link("lost");
  }, 5000);
}
