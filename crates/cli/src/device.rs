//! `--device`: where to compute, and `--list-devices`.

use super::{bytes, say, say_json};
use aquatint::raw::backend::Backend;
use aquatint::raw::backend::cpu::Tier;
use aquatint::raw::backend::cuda::device::{DeviceInfo, devices, find_devices, inspect};
use aquatint::{Error, Result};
use clap::Args;
use serde_json::{Value, json};

/// Most threads; a pool would try to start as many as it is told to.
const MOST_THREADS: usize = 1024;

/// Where to compute.
#[derive(Args, Clone)]
pub struct Device {
    /// auto, cpu, cuda or cuda:N; auto takes the first CUDA device fit for use
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    device: String,
    /// Threads [default: all processors]
    #[arg(short = 't', long, value_name = "N")]
    threads: Option<usize>,
    /// Instruction set of the CPU [default: the best this processor has]
    #[arg(long, value_name = "NAME")]
    isa: Option<String>,
}

/// A device that is there and fit for use.
#[derive(Clone, Copy)]
pub enum Choice {
    /// The processor, and its instruction set.
    Cpu(Tier),
    /// A CUDA device, by its number.
    Cuda(usize),
}

/// Runs `$body` with `$backend` bound to the back end of `$choice`, a CUDA device for the programs of `$packed`: the
/// one place where the back end is chosen, after which everything is monomorphised.
macro_rules! with_backend {
    ($choice:expr, $packed:expr, $backend:ident => $body:expr) => {
        match $choice {
            $crate::device::Choice::Cpu(tier) => {
                let $backend = aquatint::raw::backend::cpu::Cpu::new(tier);
                $body
            }
            $crate::device::Choice::Cuda(index) => {
                let driver = aquatint::raw::backend::cuda::device::Device::open(index)?;
                let narrow = aquatint::raw::backend::args::Element::F16;
                let $backend = aquatint::raw::backend::cuda::Cuda::new(driver, $packed.data(), narrow);
                $body
            }
        }
    };
}
pub(super) use with_backend;

/// What computes, for people, and the host's threads.
pub fn with_threads<B: Backend>(backend: &B) -> String {
    format!("{}, {} threads", backend.name(), rayon::current_num_threads())
}

impl Device {
    /// The device asked for.
    pub fn choice(&self) -> Result<Choice> {
        let index = match self.device.as_str() {
            "cpu" => return self.cpu().map(Choice::Cpu),
            // Who names an instruction set means the processor.
            "auto" if self.isa.is_some() => return self.cpu().map(Choice::Cpu),
            "auto" => match devices().iter().find(|device| device.check().is_ok()) {
                Some(device) => return Ok(Choice::Cuda(device.index)),
                None => return self.cpu().map(Choice::Cpu),
            },
            "cuda" => 0,
            other => match other.strip_prefix("cuda:").and_then(|n| n.parse().ok()) {
                Some(index) => index,
                None => return Err(Error::request("--device", "auto, cpu, cuda or cuda:N", format!("`{other}`"))),
            },
        };
        if let Some(isa) = &self.isa {
            return Err(Error::request("--isa", "--device cpu with it", format!("{isa} with {}", self.device)));
        }
        inspect(index).map_err(|e| self.named(e))?;
        Ok(Choice::Cuda(index))
    }

    /// The device to plan memory for. A CUDA device that is asked for by name need not be there.
    pub fn planned(&self) -> Result<Choice> {
        match self.choice() {
            Err(Error::Device { .. }) if self.device != "auto" => Ok(Choice::Cuda(0)),
            choice => choice,
        }
    }

    fn cpu(&self) -> Result<Tier> {
        let tiers = Tier::available();
        let Some(name) = &self.isa else { return Ok(tiers[0]) };
        let names: Vec<_> = tiers.iter().map(Tier::name).collect();
        tiers
            .iter()
            .find(|t| t.name() == name)
            .copied()
            .ok_or_else(|| Error::request("--isa", format!("one of this processor's: {}", names.join(", ")), name))
    }

    /// `e` with the option that it is about.
    fn named(&self, e: Error) -> Error {
        match e {
            Error::Device { kind, what, expected, got } => {
                Error::Device { kind, what: format!("--device {}: {what}", self.device), expected, got }
            }
            other => other,
        }
    }

    /// Calls `f` on a pool of the threads asked for.
    pub fn install<R: Send>(&self, f: impl FnOnce() -> R + Send) -> Result<R> {
        if let Some(n) = self.threads
            && !(1..=MOST_THREADS).contains(&n)
        {
            return Err(Error::request("--threads", format!("1 to {MOST_THREADS}"), n));
        }
        let pool = rayon::ThreadPoolBuilder::new().num_threads(self.threads.unwrap_or(0)).build();
        let pool = pool.map_err(|e| Error::request("--threads", "a number the system can start", e))?;
        Ok(pool.install(f))
    }
}

/// Lists the devices of this machine.
pub fn list(as_json: bool) {
    let isas: Vec<_> = Tier::available().iter().map(Tier::name).collect();
    let found = find_devices();
    if as_json {
        let (devices, reason) = match &found {
            Ok(devices) => (devices.iter().enumerate().map(describe).collect(), Value::Null),
            Err(e) => (vec![], json!(e.to_string())),
        };
        return say_json(&json!({ "cpu": { "isas": isas }, "cuda": { "devices": devices, "reason": reason } }));
    }
    say(format_args!("cpu     {}", isas.join(", ")));
    match found {
        Ok(devices) if devices.is_empty() => say("cuda    none: the driver sees no device"),
        Ok(devices) => devices.iter().enumerate().for_each(say_device),
        Err(e) => say(format_args!("cuda    none: {e}")),
    }
}

fn say_device((index, device): (usize, &Result<DeviceInfo>)) {
    let device = match device {
        Ok(device) => device,
        Err(e) => return say(format_args!("cuda:{index}  unfit: {e}")),
    };
    let (DeviceInfo { name, memory, .. }, (major, minor)) = (device, device.capability);
    let driver = format!("driver for CUDA {}.{}", device.driver.0, device.driver.1);
    let unfit = device.check().err().map_or(String::new(), |e| format!("; unfit: {e}"));
    say(format_args!("cuda:{index}  {name}, sm_{major}{minor}, {}, {driver}{unfit}", bytes(*memory)));
}

fn describe((index, device): (usize, &Result<DeviceInfo>)) -> Value {
    let dotted = |(major, minor): (i32, i32)| format!("{major}.{minor}");
    match device {
        Err(e) => json!({ "index": index, "reason": e.to_string() }),
        Ok(device) => json!({
            "index": index,
            "name": device.name,
            "capability": dotted(device.capability),
            "memory_bytes": device.memory,
            "driver": dotted(device.driver),
            "reason": device.check().err().map(|e| e.to_string()),
        }),
    }
}
