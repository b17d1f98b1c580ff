//! A headless browser, driven through the DevTools protocol: JSON messages over a WebSocket.

use std::fs::File;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use tungstenite::{Message, WebSocket};

use crate::find;

/// A browser that does not answer for so long has failed.
const PATIENCE: Duration = Duration::from_secs(90);

/// A running browser. It ends when this is dropped.
pub struct Browser {
    child: Child,
    socket: WebSocket<TcpStream>,
    /// Messages sent.
    sent: u64,
    /// Events that have arrived.
    events: Vec<Value>,
    /// Its profile and what it writes to standard error.
    _folder: TempDir,
}

/// A page that was loaded.
pub struct Page {
    /// What the browser found fault with; empty if nothing.
    pub problems: Vec<String>,
    /// The result of the script that was given.
    pub result: Value,
}

impl Browser {
    /// Starts the browser of this machine.
    pub fn start() -> Self {
        let program = find::browser()
            .unwrap_or_else(|why| panic!("{why}. `cargo xtask setup` installs one on Debian and Ubuntu"));
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("stderr");
        let mut command = Command::new(&program);
        command.arg("--headless").arg("--remote-debugging-port=0");
        command.arg(format!("--user-data-dir={}", folder.path().join("profile").display()));
        // It opens nothing but pages of this test, and in many containers it cannot start its sandbox.
        command.args(["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-first-run"]);
        command.args(["--no-default-browser-check", "--disable-background-networking", "--disable-sync"]);
        command.args(["--disable-component-update", "--disable-extensions", "--mute-audio", "about:blank"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log).unwrap());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let address = address(&mut child, &folder.path().join("profile/DevToolsActivePort"));
        let connected = address.and_then(|(port, path)| connect(port, &path));
        match connected {
            Ok(socket) => Self { child, socket, sent: 0, events: Vec::new(), _folder: folder },
            Err(why) => {
                drop(child.kill());
                drop(child.wait());
                let said = std::fs::read_to_string(log).unwrap_or_default();
                panic!("{} {why}; it said:\n{said}", program.display());
            }
        }
    }

    /// Loads an HTML file in a window of `width` CSS pixels, waits until its pictures are there, and evaluates
    /// `script`, an expression or a promise.
    pub fn load(&mut self, path: &Path, width: u32, dark: bool, script: &str) -> Page {
        self.events.clear();
        let target = self.call(None, "Target.createTarget", json!({"url": "about:blank"}));
        let attached = self.call(
            None,
            "Target.attachToTarget",
            json!({"targetId": target["targetId"], "flatten": true}),
        );
        let session = attached["sessionId"].as_str().unwrap().to_owned();
        let on = Some(session.as_str());
        for domain in ["Page", "Runtime", "Log", "Network", "Audits"] {
            self.call(on, &format!("{domain}.enable"), json!({}));
        }
        let size = json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false});
        self.call(on, "Emulation.setDeviceMetricsOverride", size);
        let scheme = json!({"name": "prefers-color-scheme", "value": if dark { "dark" } else { "light" }});
        self.call(on, "Emulation.setEmulatedMedia", json!({"features": [scheme]}));
        let url = file_url(path);
        let navigated = self.call(on, "Page.navigate", json!({"url": url}));
        assert_eq!(navigated["errorText"], Value::Null, "{url}");
        self.wait_for("Page.loadEventFired");

        // Only the answer to a frame after the load says that everything has been drawn, and reported.
        let drawn = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(0))))";
        self.evaluate(&session, drawn);
        let broken =
            "[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt || i.src)";
        let broken = self.evaluate(&session, broken);
        let result = self.evaluate(&session, script);
        let mut problems: Vec<String> = self.events.iter().filter_map(|event| problem(event, &url)).collect();
        problems.extend(broken.as_array().unwrap().iter().map(|name| format!("a picture is broken: {name}")));
        self.call(None, "Target.closeTarget", json!({"targetId": target["targetId"]}));
        Page { problems, result }
    }

    fn evaluate(&mut self, session: &str, script: &str) -> Value {
        let how = json!({"expression": script, "awaitPromise": true, "returnByValue": true});
        let answer = self.call(Some(session), "Runtime.evaluate", how);
        assert_eq!(answer["exceptionDetails"], Value::Null, "{script}");
        answer["result"]["value"].clone()
    }

    /// Sends a command and returns its result. Events that come before it are kept.
    fn call(&mut self, session: Option<&str>, method: &str, params: Value) -> Value {
        self.sent += 1;
        let id = self.sent;
        let mut message = json!({"id": id, "method": method, "params": params});
        if let Some(session) = session {
            message["sessionId"] = session.into();
        }
        self.socket.send(Message::text(message.to_string())).unwrap();
        loop {
            let answer = self.receive(method);
            if answer["id"] == id {
                assert_eq!(answer["error"], Value::Null, "{method}");
                return answer["result"].clone();
            }
            self.events.push(answer);
        }
    }

    fn wait_for(&mut self, event: &str) {
        while !self.events.iter().any(|known| known["method"] == event) {
            let message = self.receive(event);
            self.events.push(message);
        }
    }

    fn receive(&mut self, what_for: &str) -> Value {
        loop {
            match self.socket.read() {
                Ok(Message::Text(text)) => return serde_json::from_str(&text).unwrap(),
                Ok(_) => {}
                Err(error) => panic!("waiting for {what_for}: {error}"),
            }
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Closing it lets it take its own processes along; killing is for one that hangs.
        drop(self.socket.send(Message::text(json!({"id": 0, "method": "Browser.close"}).to_string())));
        let asked = Instant::now();
        while asked.elapsed() < Duration::from_secs(10) {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Port and path of the DevTools, which the browser writes into a file as soon as it listens.
fn address(child: &mut Child, file: &Path) -> Result<(u16, String), String> {
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        if let Ok(text) = std::fs::read_to_string(file)
            && let Some((port, path)) = text.trim_end().split_once('\n')
            && let Ok(port) = port.trim().parse()
        {
            return Ok((port, path.to_owned()));
        }
        // On some systems what was started is a script that leaves the browser behind; only a failure counts.
        if let Ok(Some(status)) = child.try_wait()
            && !status.success()
        {
            return Err(format!("ended with {status}"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err(format!("did not listen within {} s", PATIENCE.as_secs()))
}

fn connect(port: u16, path: &str) -> Result<WebSocket<TcpStream>, String> {
    let stream = TcpStream::connect(("127.0.0.1", port)).map_err(|error| format!("port {port}: {error}"))?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(|error| error.to_string())?;
    let (socket, _) = tungstenite::client(format!("ws://127.0.0.1:{port}{path}"), stream)
        .map_err(|error| format!("refused the connection: {error}"))?;
    Ok(socket)
}

/// What an event says is wrong with the page at `url`, if it does.
fn problem(event: &Value, url: &str) -> Option<String> {
    let params = &event["params"];
    match event["method"].as_str()? {
        "Runtime.exceptionThrown" => Some(format!("a script failed: {}", params["exceptionDetails"])),
        "Runtime.consoleAPICalled" => Some(format!("a script wrote to the console: {}", params["args"])),
        "Log.entryAdded" => Some(format!("logged: {} {}", params["entry"]["text"], params["entry"]["url"])),
        "Network.loadingFailed" => Some(format!("could not be loaded: {}", params["errorText"])),
        "Network.requestWillBeSent" => {
            let requested = params["request"]["url"].as_str().unwrap_or_default();
            (requested != url && !requested.starts_with("data:")).then(|| format!("requested: {requested}"))
        }
        "Audits.issueAdded" => Some(format!("an issue: {}", params["issue"])),
        "Inspector.targetCrashed" => Some("the page crashed".to_owned()),
        _ => None,
    }
}

/// The `file:` URL of an absolute path without characters that would have to be escaped.
fn file_url(path: &Path) -> String {
    let path = path.to_str().unwrap().replace('\\', "/");
    format!("file:///{}", path.trim_start_matches('/'))
}
