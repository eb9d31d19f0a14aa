//! `aquatint eval`: one denoiser call.

use super::ask;
use super::device::with_backend;
use super::tensors::{Inputs, Named, write};
use super::{Device, model};
use aquatint::pipeline::{Pipeline, Subjects};
use aquatint::whole_file::check_target;
use aquatint::{Error, Result};
use clap::Args;
use std::path::PathBuf;

/// Run the denoiser once: no guidance, no sampler.
#[derive(Args)]
pub struct Eval {
    /// A packed model [default: the embedded one]
    model: Option<PathBuf>,
    /// Timestep the model receives
    #[arg(long, value_name = "T")]
    timestep: f32,
    /// safetensors with latents [n,c,h,w], and class_labels [n] or prompt_embeds [n,tokens,features] (and pooled
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
        let pipeline = Pipeline::new(&packed)?;
        if !self.timestep.is_finite() {
            return Err(Error::request("--timestep", "a finite number", self.timestep));
        }
        check_target(
            &self.outputs,
            &self.model.iter().chain([&self.inputs]).map(PathBuf::as_path).collect::<Vec<_>>(),
        )?;
        let mut inputs = Inputs::read(&self.inputs, &[&["latents"][..], &ask::NAMES].concat())?;
        let shown = self.inputs.display().to_string();
        let missing = |name| Error::request(shown.as_str(), format!("a tensor `{name}`"), "none");
        let ([n, _, h, w], latents) =
            inputs.latents(packed.meta().pipeline.latent_channels)?.ok_or_else(|| missing("latents"))?;
        let subjects = match ask::ready(&pipeline, &mut inputs, false)? {
            Some(subjects) => subjects,
            None if pipeline.prompted() => return Err(missing("prompt_embeds")),
            None if pipeline.classified() => return Err(missing("class_labels")),
            None => Subjects::Any(n),
        };
        inputs.finish()?;
        if subjects.len() != n {
            return Err(Error::request(
                format!("{shown}: {}", if pipeline.prompted() { "prompt_embeds" } else { "class_labels" }),
                format!("{n}, one per image"),
                subjects.len(),
            ));
        }
        let (values, channels) = self.device.install(|| {
            with_backend!(choice, packed, backend => {
                pipeline.eval(&mut backend, &latents, [h, w], subjects, self.timestep)
            })
        })??;
        write(&self.outputs, &[Named { name: "sample", dims: vec![n, channels, h, w], values }])
    }
}
