//! A server of its own for each test, with small models, and a client that sends whatever it is told to.

use aquatint::image::{Encoding, from_nhwc, text_of, to_bytes};
use aquatint::options::RequestOptions;
use aquatint::{Cpu, Model, Packed, Session};
use aquatint_server::{Catalogue, Engine, Served, Server, Settings, Stop};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use std::io::{BufRead, BufReader, Cursor, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

/// What the embedded model's bytes are kept in.
type Letters = Model<'static, &'static [u8]>;

/// The model of letters.
pub fn letters() -> &'static Letters {
    static MODEL: OnceLock<&'static Letters> = OnceLock::new();
    MODEL.get_or_init(|| {
        let packed = Box::leak(Box::new(aquatint::letters()));
        Box::leak(Box::new(Model::new(packed).expect("a model")))
    })
}

/// A tiny Stable Diffusion, which reads prompts and pictures.
pub fn tiny() -> &'static Letters {
    static MODEL: OnceLock<&'static Letters> = OnceLock::new();
    MODEL.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let output = folder.join("tiny.aqt");
        let options = packer::emit::Options {
            model: common::repository("tests/fixtures/sd/v1"),
            q_config: Some("w8a8".into()),
            output: output.clone(),
            ..Default::default()
        };
        packer::emit::pack(&options, &mut |_| ()).expect("the fixture packs");
        let file = std::fs::read(output).expect("it was packed");
        // Packed bytes lie at multiples of 64.
        let room = vec![0; file.len() + 64].leak();
        let first = room.as_ptr().align_offset(64);
        let bytes = &mut room[first..first + file.len()];
        bytes.copy_from_slice(&file);
        let bytes: &'static [u8] = bytes;
        let packed = Box::leak(Box::new(Packed::new(bytes).expect("a sound file")));
        Box::leak(Box::new(Model::new(packed).expect("a model")))
    })
}

/// A server that works.
pub struct Running {
    pub address: SocketAddr,
    pub stop: Stop,
    pub log: Arc<Mutex<Vec<String>>>,
    engine: Option<JoinHandle<()>>,
    server: Option<Server>,
}

/// Serves the model of letters, twice, as `letters` and as `again`, and `tiny`.
pub fn start(settings: Settings) -> Running {
    let mut running = start_idle(settings);
    running.work();
    running
}

/// The same, but nothing is made yet: jobs wait.
pub fn start_idle(settings: Settings) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let served = [("letters", letters()), ("again", letters()), ("tiny", tiny())]
        .map(|(id, model)| Served::new(id, model, Cpu::best(), "cpu").expect("it makes images"));
    let log = Arc::new(Mutex::new(Vec::new()));
    let lines = log.clone();
    let catalogue = Catalogue::new(served.into()).expect("three models");
    let note = move |line: &str| lines.lock().unwrap().push(line.to_owned());
    let server = Server::start(listener, catalogue, settings, note).expect("it starts");
    Running { address: server.address(), stop: server.stop(), log, engine: None, server: Some(server) }
}

/// What makes a server's pictures.
fn engine(running: &Running) -> JoinHandle<()> {
    let queue = running.server.as_ref().expect("it runs").queue();
    let lines = running.log.clone();
    std::thread::spawn(move || {
        let cpu: &'static Cpu = Box::leak(Box::new(Cpu::best()));
        Engine::new(vec![(letters(), cpu), (letters(), cpu), (tiny(), cpu)])
            .run(&queue, |line| lines.lock().unwrap().push(line.to_owned()));
    })
}

impl Running {
    /// Begins to make what waits.
    pub fn work(&mut self) {
        self.engine = Some(engine(self));
    }

    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// Ends it, and waits until it has.
    pub fn end(mut self) {
        self.finish();
    }

    fn finish(&mut self) {
        self.stop.stop();
        if let Some(engine) = self.engine.take() {
            engine.join().expect("the engine ends");
        }
        if let Some(server) = self.server.take() {
            server.join();
        }
    }

    pub fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[], b"")
    }

    pub fn post(&self, path: &str, body: Value) -> Reply {
        self.send("POST", path, &[("Content-Type", "application/json")], body.to_string().as_bytes())
    }

    pub fn delete(&self, path: &str) -> Reply {
        self.send("DELETE", path, &[], b"")
    }

    /// One request on a connection of its own.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let mut stream = self.open();
        write(&mut stream, self.address, method, path, headers, body);
        read(&mut BufReader::new(stream))
    }

    pub fn open(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(120))).expect("a timeout");
        stream
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.finish();
        }
    }
}

/// Sends a request; a `Host` among `headers` takes the place of the server's own.
pub fn write(
    stream: &mut TcpStream,
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) {
    let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        head += &format!("Host: {address}\r\n");
    }
    if !body.is_empty() {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    // A server that refuses a request need not read all of it.
    let _ = stream.write_all(format!("{head}\r\n").as_bytes()).and_then(|()| stream.write_all(body));
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("text")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// The JSON of an answer that must be one of success.
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()
    }

    /// The message of an error in OpenAI's shape, whose status must be this.
    pub fn error(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", self.text());
        let error = &self.json()["error"];
        for key in ["message", "type", "param", "code"] {
            assert!(error.get(key).is_some(), "no {key} in {error}");
        }
        error["message"].as_str().expect("a text").to_owned()
    }

    /// Names and data of server-sent events.
    pub fn events(&self) -> Vec<(String, Value)> {
        let text = self.text();
        let records = text.split("\n\n").filter(|record| !record.trim().is_empty() && !record.starts_with(':'));
        records
            .map(|record| {
                let field =
                    |name: &str| record.lines().find_map(|line| line.strip_prefix(name)).expect("a field").trim();
                (field("event:").to_owned(), serde_json::from_str(field("data:")).expect("JSON"))
            })
            .collect()
    }
}

/// Reads an answer to its end, which is the connection's unless its length is told.
pub fn read(reader: &mut impl BufRead) -> Reply {
    try_read(reader).expect("an answer")
}

/// The same; none if the connection ends before an answer begins.
pub fn try_read(reader: &mut impl BufRead) -> Option<Reply> {
    let mut line = String::new();
    if reader.read_line(&mut line).is_err() || line.is_empty() {
        return None;
    }
    let status =
        line.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("no status: {line:?}"));
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a header");
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let chunked = headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
    let mut body = Vec::new();
    if chunked {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).expect("a chunk");
            let len = usize::from_str_radix(line.trim(), 16).expect("a length");
            let mut chunk = vec![0; len + 2];
            reader.read_exact(&mut chunk).expect("the chunk");
            body.extend(&chunk[..len]);
            if len == 0 {
                break;
            }
        }
    } else if let Some((_, length)) = headers.iter().find(|(name, _)| name == "content-length") {
        body = vec![0; length.parse().expect("a length")];
        reader.read_exact(&mut body).expect("the body");
    } else if status != 204 {
        let _ = reader.read_to_end(&mut body);
    }
    Some(Reply { status, headers, body })
}

/// The bytes of base64.
pub fn bytes(value: &Value) -> Vec<u8> {
    STANDARD.decode(value.as_str().expect("a text")).expect("base64")
}

/// The file that `aquatint run` would write for the letter `label`, the text aside, which is taken from `png`.
pub fn expected(label: &str, seed: u64, steps: usize, change: impl FnOnce(&mut RequestOptions), png: &[u8]) -> Vec<u8> {
    expected_of(letters(), label, seed, steps, change, png)
}

/// The same of another model.
pub fn expected_of(
    model: &Letters,
    prompt: &str,
    seed: u64,
    steps: usize,
    change: impl FnOnce(&mut RequestOptions),
    png: &[u8],
) -> Vec<u8> {
    let mut options = RequestOptions::default();
    options.prompts.prompts = vec![prompt.to_owned()];
    (options.seed, options.sampling.steps) = (Some(seed), Some(steps));
    change(&mut options);
    let cpu = Cpu::best();
    let output = Session::new(model, &cpu).run(options.request(model, None).expect("a request")).expect("a picture");
    let [h, w] = output.size;
    let image = from_nhwc(&output.images, 1, h as u32, w as u32, output.channels).expect("a picture").remove(0);
    let text = text_of(Cursor::new(png), "the answer", "parameters").expect("a text");
    to_bytes(&image, Encoding::Png, &[("parameters", &text)]).expect("a file")
}
