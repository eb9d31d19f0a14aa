//! `aquatint eval`: one denoiser call.

use super::device::with_backend;
use super::options::read_tensors;
use super::tensors::write;
use super::{Device, model};
use aquatint::model::Model;
use aquatint::options::NamedTensor;
use aquatint::pipeline::{Prompts, Session};
use aquatint::raw::whole_file::check_target;
use aquatint::{Error, Result};
use clap::Args;
use std::path::{Path, PathBuf};

/// Run the denoiser once: no guidance, no sampler.
#[derive(Args)]
#[command(allow_negative_numbers = true)]
pub struct Eval {
    /// A packed model [default: the embedded one]
    model: Option<PathBuf>,
    /// Timestep the model receives
    #[arg(long, value_name = "T")]
    timestep: f32,
    /// safetensors with latents [n,c,h,w] ([n,c,frames,h,w] of videos), and class_labels [n] or prompt_embeds [n,tokens,features] (and pooled
    /// [n,features])
    #[arg(long, value_name = "FILE")]
    inputs: PathBuf,
    /// safetensors to write: sample [n, channels out, h, w]
    #[arg(long, value_name = "FILE")]
    outputs: PathBuf,
    #[command(flatten)]
    device: Device,
}

impl Eval {
    /// Runs the command.
    pub fn run(&self) -> Result<()> {
        let choice = self.device.choice()?;
        let packed = model::open(self.model.as_deref())?;
        let model = Model::new(&packed)?;
        if !self.timestep.is_finite() {
            return Err(Error::request("--timestep", "a finite number", self.timestep));
        }
        let read: Vec<&Path> = self.model.iter().chain([&self.inputs]).map(PathBuf::as_path).collect();
        check_target(&self.outputs, &read)?;
        let mut tensors = read_tensors(&self.inputs)?;
        let source = tensors.source().to_owned();
        let missing = |name| Error::request(source.as_str(), format!("a tensor `{name}`"), "none");
        let ([n, _, f, h, w], latents) = tensors.latents(&model)?.ok_or_else(|| missing("latents"))?;
        let needed = if model.text.is_some() { "prompt_embeds" } else { "class_labels" };
        let prompts = match tensors.prompts(&model, false)? {
            Some(prompts) => prompts,
            None if model.conditional() => return Err(missing(needed)),
            None => Prompts::Unconditional(n),
        };
        tensors.finish()?;
        if prompts.len() != n {
            return Err(Error::request(format!("{source}: {needed}"), format!("{n}, one per image"), prompts.len()));
        }
        let (values, channels) = self.device.install(|| {
            with_backend!(choice, packed, backend => {
                Session::new(&model, &backend).eval(&latents, [h, w], prompts, self.timestep)
            })
        })??;
        let dims = model.latents.axes([n, channels, f, h, w]);
        write(&self.outputs, &[NamedTensor { name: "sample", dims, values }])
    }
}
