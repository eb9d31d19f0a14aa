//! `aquatint serve`.

use super::device::{Choice, Device, with_threads};
use super::model::{self, Bytes};
use super::say;
use aquatint::error::one_line;
use aquatint::options::parse_bytes;
use aquatint::raw::backend::args::Element;
use aquatint::raw::backend::cpu::Cpu;
use aquatint::raw::backend::cuda::{Cuda, CudaSizing, device::Device as CudaDevice};
use aquatint::raw::backend::{Backend, MemoryRules};
use aquatint::{Error, Model, Result};
use aquatint_server::{Catalogue, Engine, Limits, Memory, Served, Server, Settings, Stop};
use clap::Args;
use std::io::Write;
use std::net::{IpAddr, TcpListener};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

/// How long a server that is told to end may take for its last words.
const LAST_WORDS: Duration = Duration::from_secs(6);
/// Where the token is, if no file holds it.
const TOKEN: &str = "AQUATINT_TOKEN";

static STOP: OnceLock<Stop> = OnceLock::new();

/// Tells a server that runs to end, and gives it time to; returns at once where there is none.
pub fn stop() {
    if let Some(stop) = STOP.get() {
        stop.stop();
        std::thread::sleep(LAST_WORDS);
    }
}

/// Serve models over HTTP.
#[derive(Args)]
pub struct Serve {
    /// Packed models; the first is that of requests that name none [default: the small model of letters inside this program]
    models: Vec<PathBuf>,
    /// Address to listen at. Beyond this machine (0.0.0.0 and others) clients must show a token
    #[arg(long, default_value = "127.0.0.1", value_name = "ADDRESS")]
    host: IpAddr,
    /// Port to listen at; 0 takes a free one
    #[arg(long, default_value_t = 7860, value_name = "N")]
    port: u16,
    /// File with the token that clients must show (Authorization: Bearer TOKEN) [default: what AQUATINT_TOKEN holds, if anything]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Let everybody in, also from other machines
    #[arg(long, conflicts_with = "token_file")]
    no_auth: bool,
    /// A further name that this server is called by
    #[arg(long, value_name = "NAME")]
    allow_host: Vec<String>,
    /// Origin of web pages that may use this server, such as https://chat.example
    #[arg(long, value_name = "ORIGIN")]
    allow_origin: Vec<String>,
    /// Most pixels of a picture's side
    #[arg(long, default_value_t = Limits::default().side, value_name = "PIXELS")]
    max_side: usize,
    /// Most sampler steps
    #[arg(long, default_value_t = Limits::default().steps, value_name = "N")]
    max_steps: usize,
    /// Most pictures of a request
    #[arg(long, default_value_t = Limits::default().images, value_name = "N")]
    max_images: usize,
    /// Most jobs that wait; further ones are told to come again
    #[arg(long, default_value_t = Limits::default().queue, value_name = "N")]
    max_queue: usize,
    /// Most working memory of a job [default: nine tenths of what is free at the start]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    max_memory: Option<usize>,
    #[command(flatten)]
    device: Device,
}

impl Serve {
    /// Runs the command.
    pub fn run(&self) -> Result<()> {
        let choice = self.device.choice()?;
        let settings = self.settings()?;
        let files: Vec<Option<PathBuf>> = match self.models.as_slice() {
            [] => vec![None],
            models => models.iter().cloned().map(Some).collect(),
        };
        // They are served as long as the process lives.
        let models = files.iter().map(|file| {
            let packed = Box::leak(Box::new(model::open(file.as_deref())?));
            let model: &'static Model<'static, Bytes> = Box::leak(Box::new(Model::new(packed)?));
            let id = file.as_deref().map_or("letters".into(), |_| model::name(file.as_deref()));
            Ok((id, model))
        });
        let models = models.collect::<Result<Vec<_>>>()?;
        let listener = TcpListener::bind((self.host, self.port)).map_err(|e| {
            Error::request(
                "port",
                "an address that is free and this machine's",
                format!("{}:{}: {e}", self.host, self.port),
            )
        })?;
        self.device.install(|| match choice {
            Choice::Cpu(tier) => serve(models, listener, settings, |_| Ok((Cpu::new(tier), Cpu::new(tier)))),
            Choice::Cuda(index) => {
                let narrow = Element::F16;
                serve(models, listener, settings, |model| {
                    let driver = CudaDevice::open(index)?;
                    Ok((Cuda::new(driver, model.packed().data(), narrow), CudaSizing { narrow }))
                })
            }
        })?
    }

    fn settings(&self) -> Result<Settings> {
        let token = match &self.token_file {
            Some(path) => Some(std::fs::read_to_string(path).map_err(Error::io("read", path))?),
            None => std::env::var(TOKEN).ok(),
        };
        let token = token.map(|token| token.trim().to_owned());
        if token.as_ref().is_some_and(|token| token.len() < 8) {
            return Err(Error::request("token", "at least 8 characters", "fewer"));
        }
        let token = token.filter(|_| !self.no_auth);
        if token.is_none() && !self.no_auth && !self.host.is_loopback() {
            let expected =
                format!("a token (--token-file or {TOKEN}) beyond this machine, or --no-auth to let everybody in");
            return Err(Error::request("host", expected, self.host));
        }
        let free = Memory::now().map(|memory| memory.available / 10 * 9);
        let limits = Limits {
            side: self.max_side,
            steps: self.max_steps,
            images: self.max_images,
            queue: self.max_queue,
            memory: self.max_memory.or(free).unwrap_or(usize::MAX),
            ..Limits::default()
        };
        Ok(Settings { token, hosts: self.allow_host.clone(), origins: self.allow_origin.clone(), limits })
    }
}

/// Serves models on back ends that `open` makes, with what plans their memory, until it is told to end.
fn serve<B: Backend + 'static, R: MemoryRules + Send + Sync + 'static>(
    models: Vec<(String, &'static Model<'static, Bytes>)>,
    listener: TcpListener,
    settings: Settings,
    open: impl Fn(&'static Model<'static, Bytes>) -> Result<(B, R)>,
) -> Result<()> {
    let (mut served, mut engine, mut computes) = (Vec::new(), Vec::new(), String::new());
    for (id, model) in models {
        let (backend, rules) = open(model)?;
        let backend: &'static B = Box::leak(Box::new(backend));
        served.push(Served::new(&id, model, rules, &backend.name())?);
        computes = with_threads(backend);
        engine.push((model, backend));
    }
    let ids: Vec<_> = served.iter().map(|model| model.id.clone()).collect();
    let server = Server::start(listener, Catalogue::new(served)?, settings, log);
    let server = server.map_err(|e| Error::request("server", "a thread and a socket", e))?;
    let _ = STOP.set(server.stop());
    say(format_args!("serving {} at http://{} ({computes})", ids.join(", "), server.address()));
    Engine::new(engine).run(&server.queue(), log);
    server.join();
    Ok(())
}

/// A line of the log.
fn log(line: &str) {
    let _ = writeln!(std::io::stderr(), "{}", one_line(line));
}
